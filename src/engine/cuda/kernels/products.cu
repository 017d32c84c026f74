// Matrix products on Hopper with what follows them: y = f(x W^T), both operands by the tensor copy engine into rings of
// shared memory, multiplied by two warpgroups, each with its accumulators. bf16, accumulated in f32; of e4m3: products_fp8.cu.
//
// A block's tile: 128 rows of x by N rows of W, in steps of 128 bytes of k. Clusters of ROWS_ x COLUMNS blocks: each block
// loads its share of a tile of x (W) and sends it to all blocks of its row (column). Weights do not depend on the kernel
// before, so the first steps' are fetched before it has ended.
//
// Norms are no kernels of their own. A norm needs whole rows, a block has some columns: so whoever makes the residual
// stream also writes it times the norm's weights in bf16, and each row's sum and sum of squares of its columns; the product
// that takes it is W norm(x) = r (W xs - mean W weights) + W shift, with r and mean in what follows it.

#if __CUDA_ARCH__ == 900
// What the next norm needs of the residual stream.
struct Next {
    const float* weights; // null: nothing
    u16* scaled;
    float2* sums;
};

// GELU of 2 h, good to 2^-11.
__device__ __forceinline__ float gelu_of_half(float h) {
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(h * fmaf(0.28541926f, h * h, 1.5957691f)));
    return fmaf(h, t, h);
}

// y = GELU(x W^T + bias) of normalized rows. One tile per block. columns: a multiple of 8; steps of 64 of k.
// block: 384.
template <int N, int ROWS_, int COLUMNS, int STAGES, int WINDOW>
__device__ __forceinline__ void biased(const Map& x, const Map& w, int rows, int columns, int steps, u16* y, const float* bias, Norm norm) {
    constexpr int STAGE = (128 + N) * 128, PITCH = N * 2 + 16;
    static_assert(N % 16 == 0 && STAGES >= 4 && 16 * PITCH <= 64 * 128, "a warp's rows wait in a stage of its own");
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), vectors = ring + STAGES * STAGE, factors = vectors + N * 8;
    u32 full = factors + 128 * 8, empty = full + STAGES * 8;
    Place<ROWS_, COLUMNS, N> place(rows, columns);
    int first = place.n(blockIdx.x) * N;
    if (threadIdx.x == 0) {
        open_gates<ROWS_, COLUMNS, STAGES>(full, empty);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            // Multiplications take longer than copies: x does not stand in line behind the W of all steps.
            if (is_elected())
                fetch_all<N, ROWS_, COLUMNS, STAGES, 2, WINDOW>(x, w, ring, full, empty, steps, place, [&](int tile, int h) { return place.n(tile) * N + h * (N / 2); });
            __syncwarp();
        } else {
            // Half of the product, for `gelu_of_half`.
            fetch_vectors(vectors, factors, N, place.m(blockIdx.x), rows, bias, norm, [&](int i) { return min(first + i, columns - 1); }, 0.5f);
            asm volatile("bar.arrive 3, 224;\nbar.arrive 4, 224;" ::: "memory");
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128, row = half * 64 + t / 32 * 16 + t % 32 / 4, c = t % 4;
        u32 tell = place.tell(t, empty);
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        float d[N / 2];
        multiply_tile<N, STAGES>(d, ring, full, place.tells(t), tell, steps, turn, half);
        // Through shared memory, so that rows are written in larger pieces: each warp for itself, in this warpgroup's own rows of a
        // stage of the ring. The other warpgroup never reads those, so that neither waits for the other.
        warpgroup_sync<224>(2 + half); // nor this one any more; and vectors and factors have come
        u32 mine = ring + t / 32 * STAGE + half * 64 * 128, low = mine + t % 32 / 4 * PITCH + c * 4, high = low + 8 * PITCH;
        float2 low_row = get_2(factors + row * 8), high_row = get_2(factors + (row + 8) * 8);
        int top = place.m(blockIdx.x) + half * 64 + t / 32 * 16;
        // Some columns at a time, so that memory takes in those while the next ones are made; reads and writes of shared memory
        // keep their order, and would wait for each other.
        constexpr int GROUP = 4;
#pragma unroll
        for (int next = 0; next < N / 8; next += GROUP) {
            int count = min(GROUP, N / 8 - next);
            float4 of[GROUP]; // bias and part of means of two columns
#pragma unroll
            for (int j = 0; j < count; j++) of[j] = get_4(vectors + ((next + j) * 8 + c * 2) * 8);
#pragma unroll
            for (int j = 0; j < count; j++) {
                float* a = d + (next + j) * 4;
                float4 b = of[j];
                a[0] = (a[0] - low_row.y * b.y) * low_row.x + b.x;
                a[1] = (a[1] - low_row.y * b.w) * low_row.x + b.z;
                a[2] = (a[2] - high_row.y * b.y) * high_row.x + b.x;
                a[3] = (a[3] - high_row.y * b.w) * high_row.x + b.z;
#pragma unroll
                for (int e = 0; e < 4; e++) a[e] = gelu_of_half(a[e]);
                put(low + (next + j) * 16, pack_bf16(a[0], a[1]));
                put(high + (next + j) * 16, pack_bf16(a[2], a[3]));
            }
            __syncwarp();
            // 16 rows of `count` pieces of 16 bytes.
            uint4 values[GROUP / 2];
            auto local = [=](int i) { return (i * 32 + t % 32) / count; };
            auto piece = [=](int i) { return next + (i * 32 + t % 32) % count; };
#pragma unroll
            for (int i = 0; i < count / 2; i++) values[i] = get(mine + local(i) * PITCH + piece(i) * 16);
#pragma unroll
            for (int i = 0; i < count / 2; i++) {
                int r = top + local(i), column = first + piece(i) * 8;
                if (r < rows && column < columns) *(uint4*)(y + (size_t)r * columns + column) = values[i];
            }
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

// y, the residual stream in f32, += x W^T + bias; and what the next norm needs of it. One tile per block; where there are
// few tiles, SPLIT blocks of a cluster have the same one and a part of k each: every one gets what the others have of its
// share of the columns, and finishes that. columns: a multiple of 8; steps of 64 of k. block: 384.
template <int N, int ROWS_, int COLUMNS, int SPLIT, int STAGES, int AHEAD, int WINDOW>
__device__ __forceinline__ void added(const Map& x, const Map& w, int rows, int columns, int all_steps, float* y, const float* bias, Next next) {
    constexpr int STAGE = (128 + N) * 128, SHARE = N / SPLIT, PITCH = SHARE * 4 + 32;
    // Of a row: lanes, of which so many finish four columns each; of a thread: every other of a warp's 16 rows.
    constexpr int LANES = 16, QUADS = SHARE / 4, EACH = 8;
    static_assert(QUADS <= LANES, "a share's columns");
    static_assert(STAGES >= 4 && 16 * PITCH <= 64 * 128, "a warp's rows wait in a stage of its own");
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), inbox = ring + STAGES * STAGE, full = inbox + (SPLIT - 1) * 128 * SHARE * 4;
    u32 empty = full + STAGES * 8, came = empty + STAGES * 8;
    Place<ROWS_, COLUMNS, N, 128, SPLIT> place(rows, columns);
    int part = place.part_of;
    place.begin = all_steps * part / SPLIT;
    place.is_padding = SPLIT > 1 && place.n(blockIdx.x) * N >= columns;
    int steps = all_steps * (part + 1) / SPLIT - place.begin;
    if (threadIdx.x == 0) {
        open_gates<ROWS_, COLUMNS, STAGES>(full, empty);
        if (SPLIT > 1) gate_init(came, 1), gate_init(came + 8, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        if (SPLIT > 1) gate_expect(came, (SPLIT - 1) * 64 * SHARE * 4), gate_expect(came + 8, (SPLIT - 1) * 64 * SHARE * 4);
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected())
                fetch_all<N, ROWS_, COLUMNS, STAGES, AHEAD, WINDOW>(x, w, ring, full, empty, steps, place, [&](int tile, int h) { return place.n(tile) * N + h * (N / 2); });
            __syncwarp();
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128, c = t % 4, lane = t % LANES;
        int share = place.n(blockIdx.x) * SPLIT + part, quad = share * SHARE + lane * 4, top = place.m(blockIdx.x) + half * 64 + t / 32 * 16;
        bool has_quad = lane < QUADS && quad < columns;
        auto local = [&](int i) { return i * 2 + t % 32 / LANES; };
        auto counts = [&](int i) { return has_quad && top + local(i) < rows; };
        float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f), plus = none, weights = none, v[EACH], old[EACH];
        if (has_quad && bias) plus = *(const float4*)(bias + quad);
        if (has_quad && next.weights) weights = *(const float4*)(next.weights + quad);
        u32 tell = place.tell(t, empty);
        wait_for_previous();
        let_next_start();
#pragma unroll
        for (int i = 0; i < EACH; i++) old[i] = counts(i) ? read_4(y + (size_t)(top + local(i)) * columns + quad) : none;
        Turn<STAGES> turn;
        float d[N / 2], found[SHARE / 2];
        multiply_tile<N, STAGES>(d, ring, full, place.tells(t), tell, steps, turn, half);
        u32 slot = (threadIdx.x - 128) * 16;
#pragma unroll
        for (int q = 0; q < SPLIT; q++) {
            if (q == part) {
#pragma unroll
                for (int i = 0; i < SHARE / 2; i++) found[i] = d[q * SHARE / 2 + i];
            } else {
                u32 block = blockIdx.y + (q - part) * ROWS_ * COLUMNS, gate = in_block(came + half * 8, block);
                u32 to = in_block(inbox + (part - (part > q)) * SHARE * 512 + slot, block);
#pragma unroll
                for (int j = 0; j < SHARE / 8; j++) {
                    const float* x = d + q * SHARE / 2 + j * 4;
                    push4(to + j * 4096, make_float4(x[0], x[1], x[2], x[3]), gate);
                }
            }
        }
        if (SPLIT > 1) {
            gate_wait(came + half * 8, 0);
            float4 other[SHARE / 8];
#pragma unroll
            for (int o = 0; o < SPLIT - 1; o++) {
#pragma unroll
                for (int j = 0; j < SHARE / 8; j++) other[j] = get_4(inbox + o * SHARE * 512 + j * 4096 + slot);
#pragma unroll
                for (int j = 0; j < SHARE / 8; j++) {
                    float* f = found + j * 4;
                    f[0] += other[j].x; f[1] += other[j].y; f[2] += other[j].z; f[3] += other[j].w;
                }
            }
        }
        // Each warp for itself, in this warpgroup's own rows of a stage of the ring, which the other one never reads.
        warpgroup_sync<128>(half);
        u32 mine = ring + t / 32 * STAGE + half * 64 * 128, low = mine + t % 32 / 4 * PITCH + c * 8;
#pragma unroll
        for (int j = 0; j < SHARE / 8; j++) {
            float* f = found + j * 4;
            put_2(low + j * 32, f[0], f[1]);
            put_2(low + 8 * PITCH + j * 32, f[2], f[3]);
        }
        __syncwarp();
        // Loads, stores and shuffles in sets of their own: each of a set waits for none before it.
#pragma unroll
        for (int i = 0; i < EACH; i++) v[i] = get_4(mine + local(i) * PITCH + min(lane, QUADS - 1) * 16);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float4 o = old[i];
            v[i] = make_float4(o.x + (v[i].x + plus.x), o.y + (v[i].y + plus.y), o.z + (v[i].z + plus.z), o.w + (v[i].w + plus.w));
            if (lane >= QUADS) v[i] = none; // not summed
            if (counts(i)) *(float4*)(y + (size_t)(top + local(i)) * columns + quad) = v[i];
        }
        if (next.weights) {
            float part_of[2 * EACH]; // sums, then sums of squares, of rows
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                part_of[i] = (v[i].x + v[i].y) + (v[i].z + v[i].w);
                part_of[EACH + i] = (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
                uint2 scaled = make_uint2(pack_bf16(v[i].x * weights.x, v[i].y * weights.y), pack_bf16(v[i].z * weights.z, v[i].w * weights.w));
                if (counts(i)) *(uint2*)(next.scaled + (size_t)(top + local(i)) * columns + quad) = scaled;
            }
            // Each of the 16 lanes ends with one of 16 sums: half as many at each exchange.
#pragma unroll
            for (int turn = 0; turn < 4; turn++) {
                int most = EACH >> turn;
                bool is_upper = lane & most;
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    if (i >= most) continue;
                    float given = is_upper ? part_of[i] : part_of[i + most], kept = is_upper ? part_of[i + most] : part_of[i];
                    part_of[i] = kept + __shfl_xor_sync(FULL, given, most);
                }
            }
            int r = top + local(lane % EACH);
            if (r < rows && share * SHARE < columns) ((float*)next.sums)[((size_t)share * rows + r) * 2 + lane / EACH] = part_of[0];
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

// GEGLU of x W^T, W = [gate; up]. columns: a multiple of 8.
struct ToBf16 {
    u16* y;
    int columns, first;
    __device__ __forceinline__ void begin(int column) { first = column; }
    __device__ __forceinline__ void finish(int h, uint4 gates, uint4 ups, int row, bool counts) const {
        const u32 *g = &gates.x, *u = &ups.x;
        uint4 out;
        u32* o = &out.x;
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[e] = pack_bf16(gelu_tanh(of_bf16(g[e] & 0xffff)) * of_bf16(u[e] & 0xffff), gelu_tanh(of_bf16(g[e] >> 16)) * of_bf16(u[e] >> 16));
        if (counts && first + h * 64 < columns) *(uint4*)(y + (size_t)row * columns + first + h * 64) = out;
    }
};
// The same of sums that lie the other way round; gate and up in f32.
struct TurnedToBf16 {
    u16* y;
    int columns;
    __device__ __forceinline__ void begin(int) const {}
    template <int COUNT> __device__ __forceinline__ void finish(float (&gate)[COUNT], float (&up)[COUNT], int column, int top, int rows, int g, int c) const {
        // 16 rows at a time: two lanes side by side have the 16 columns of one.
        column += c % 2 * 8;
        u16* to = y + (size_t)(top + c / 2 * 8 + g) * columns + column;
        int left = column < columns ? rows - top - g - c / 2 * 8 : 0;
#pragma unroll
        for (int j = 0; j < COUNT / 4; j += 2) {
            u32 v[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = j * 4 + i * 2;
                if (at < COUNT) v[i] = transposed(pack_bf16(gelu_fast(gate[at]) * up[at], gelu_fast(gate[at + 1]) * up[at + 1]));
            }
            turn_quad(v, c);
            uint4 out = make_uint4(v[0], v[1], v[2], v[3]);
            u16* at = to + (size_t)j * 8 * columns;
            bool is = left > j * 8 && (j + 1 < COUNT / 4 || c < 2);
            // One branch after all: what the compiler would have under way of all rows does not fit the registers.
            if (j != COUNT / 16 * 2) write_if(is, at, out);
            else if (is) *(uint4*)at = out;
        }
    }
};

#define KERNEL(NAME, WHAT)                                                                                                   \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ Map x, const __grid_constant__ Map w, \
            int rows, int columns, int steps, void* y, const float* bias, const float2* sums, int blocks, float per_width, \
            const float* of_means, const float* next_weights, u16* scaled, float2* next_sums) {                            \
        WHAT;                                                                                                              \
    }
#define BIASED(N, ROWS_, COLUMNS, STAGES, WINDOW) \
    biased<N, ROWS_, COLUMNS, STAGES, WINDOW>(x, w, rows, columns, steps, (u16*)y, bias, {sums, blocks, per_width, of_means})
KERNEL(geglu_2x1, (geglu_of<2, 1, 3>(x, w, rows, columns, steps, ToBf16{(u16*)y, columns})))
KERNEL(geglu_1x2, (geglu_of<1, 2, 3>(x, w, rows, columns, steps, ToBf16{(u16*)y, columns})))
KERNEL(geglu_168, (geglu_turned<168, 2, 1, 4>(x, w, rows, columns, steps, TurnedToBf16{(u16*)y, columns})))
KERNEL(geglu_184, (geglu_turned<184, 1, 2, 4>(x, w, rows, columns, steps, TurnedToBf16{(u16*)y, columns})))
KERNEL(bias_gelu_144, (BIASED(144, 2, 2, 6, 3)))
KERNEL(bias_gelu_208, (BIASED(208, 2, 1, 5, 5)))
#define ADDED(N, ROWS_, COLUMNS, SPLIT, STAGES, AHEAD, WINDOW) \
    added<N, ROWS_, COLUMNS, SPLIT, STAGES, AHEAD, WINDOW>(x, w, rows, columns, steps, (float*)y, bias, {next_weights, scaled, next_sums})
KERNEL(add_64, (ADDED(64, 2, 2, 1, 8, 4, 8)))
KERNEL(add_96, (ADDED(96, 2, 2, 2, 7, 3, 7)))
KERNEL(add_128_2x2, (ADDED(128, 2, 2, 2, 6, 3, 6)))
KERNEL(add_128_2x1, (ADDED(128, 2, 1, 2, 6, 3, 3)))
#endif
