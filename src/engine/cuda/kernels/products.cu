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
// What follows the product.
#define GEGLU 0 // W = [gate; up]: GELU(gate) * up
#define BIAS 1
#define BIAS_GELU 2
#define ADD 3 // with a bias, to the residual stream, which is f32

#define PRODUCT_THREADS 384

// Where the residual stream's sums are, [blocks][rows] of (sum, sum of squares), and what is made of them.
struct Norm {
    const float2* sums; // null: x is taken as it is
    int blocks;
    float per_width;       // 1 / width
    const float* of_means; // W weights: what the mean of a row adds to each column; null: the norm has no mean
};
// What the next norm needs of the residual stream.
struct Next {
    const float* weights; // null: nothing
    u16* scaled;
    float2* sums;
};

// rows, columns of y (a multiple of 8); steps of 128 bytes of k.
template <int N, int ROWS_, int COLUMNS, int STAGES, int KIND>
__device__ __forceinline__ void product(const Map& x, const Map& w, int rows, int columns, int steps, void* y,
        const float* bias, Norm norm, Next next) {
    constexpr int STAGE = (128 + N) * 128, STEP = 64;
    constexpr bool PERSISTS = KIND == GEGLU, FOLLOWED = KIND == BIAS || KIND == BIAS_GELU;
    constexpr int WIDE = KIND == GEGLU ? N / 2 : N;
    constexpr int PITCH = KIND == ADD ? N * 4 + 32 : WIDE * 2 + 16;
    constexpr int QUADS = N / 4; // of a row
    // Steps whose W is asked for before the first of x: all, but where multiplications take longer than copies, few do, and
    // x does not stand in line behind the others.
    constexpr int AHEAD = FOLLOWED ? 2 : STAGES;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), staging = PERSISTS ? ring + STAGES * STAGE : ring;
    u32 vectors = ring + STAGES * STAGE + (PERSISTS ? 128 * PITCH : 0);
    u32 factors = vectors + (FOLLOWED ? N * 8 : 0);
    u32 full = factors + (FOLLOWED ? 128 * 8 : 0), empty = full + STAGES * 8;
    int group = threadIdx.x / 128, row_of = blockIdx.y % ROWS_, column_of = blockIdx.y / ROWS_;
    int tiles_m = (rows + ROWS_ * 128 - 1) / (ROWS_ * 128), tiles = tiles_m * (((columns + WIDE - 1) / WIDE + COLUMNS - 1) / COLUMNS);
    int own_row = (blockIdx.x % tiles_m * ROWS_ + row_of) * 128, own_column = (blockIdx.x / tiles_m * COLUMNS + column_of) * N; // of a block with one tile
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            gate_init(full + s * 8, 1);
            gate_init(empty + s * 8, (ROWS_ + COLUMNS - 1) * 2);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected()) {
                ready(&x);
                u16 to_row = 0, to_column = 0; // x goes along the row, W along the column
                for (int c = 0; c < COLUMNS; c++) to_row |= 1 << (c * ROWS_ + row_of);
                for (int r = 0; r < ROWS_; r++) to_column |= 1 << (column_of * ROWS_ + r);
                u32 x_part = column_of * (128 / COLUMNS) * 128, w_part = 128 * 128 + (ROWS_ == 2 ? row_of * (N / 2) * 128 : 0);
                int w_other = KIND == GEGLU ? columns : N / 2; // from the first half of a tile's rows of W to the second
                auto w_row = [&](int tile) { return (tile / tiles_m * COLUMNS + column_of) * (KIND == GEGLU ? N / 2 : N) + (ROWS_ == 2 ? row_of * w_other : 0); };
                auto fetch_w = [&](int row, int s, int stage) {
                    gate_expect(full + stage * 8, STAGE);
                    u32 to = ring + stage * STAGE + w_part;
                    fetch(to, &w, full + stage * 8, s * STEP, row, to_column);
                    if (ROWS_ == 1) fetch(to + N / 2 * 128, &w, full + stage * 8, s * STEP, row + w_other, to_column);
                };
                int ahead = steps < AHEAD ? steps : AHEAD; // W fetched before the kernel before has ended
                for (int s = 0; s < ahead; s++) fetch_w(w_row(blockIdx.x), s, s);
                wait_for_previous();
                int stage = 0, round = 0;
                for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                    int row = (tile % tiles_m * ROWS_ + row_of) * 128 + column_of * (128 / COLUMNS), at = w_row(tile);
                    for (int s = 0; s < steps; s++) {
                        if (ahead > 0)
                            ahead--;
                        else {
                            if (round > 0) gate_wait(empty + stage * 8, (round - 1) % 2);
                            fetch_w(at, s, stage);
                        }
                        fetch(ring + stage * STAGE + x_part, &x, full + stage * 8, s * STEP, row, to_row);
                        if (++stage == STAGES) stage = 0, round++;
                    }
                }
            }
            __syncwarp();
        } else if (FOLLOWED) {
            // Others of this warpgroup get what follows the product: columns' bias and part of means, rows' factor and mean.
            for (int i = threadIdx.x - 32; i < N; i += 96) {
                int at = min(own_column + i, columns - 1);
                put_2(vectors + i * 8, bias[at], norm.of_means ? norm.of_means[at] : 0.0f);
            }
            wait_for_previous();
            for (int i = threadIdx.x - 32; i < 128; i += 96) {
                float sum = 0.0f, squares = 0.0f, r = 1.0f;
                const float2* sums = norm.sums + min(own_row + i, rows - 1);
#pragma unroll 6
                for (int b = 0; b < norm.blocks; b++) {
                    float2 s = sums[(size_t)b * rows];
                    sum += s.x;
                    squares += s.y;
                }
                float mean = norm.of_means ? sum * norm.per_width : 0.0f;
                if (norm.blocks > 0) r = rsqrtf(fmaxf(squares * norm.per_width - mean * mean, 0.0f) + 1e-6f);
                put_2(factors + i * 8, r, mean);
            }
            asm volatile("bar.arrive 3, 352;" ::: "memory");
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = group - 1, t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, c = t % 4;
        // Whom to tell that a stage is free: all who write to it.
        bool tells = t < ROWS_ + COLUMNS - 1;
        int told = t < ROWS_ ? column_of * ROWS_ + t : (t - ROWS_ + (t - ROWS_ >= column_of)) * ROWS_ + row_of;
        // ADD: a thread finishes four columns of every 128 / QUADS-th row.
        int quad = own_column + t % QUADS * 4;
        bool has_quad = KIND == ADD && quad < columns;
        float4 plus = make_float4(0.0f, 0.0f, 0.0f, 0.0f), weights = plus, old[KIND == ADD ? N / 8 : 1];
        if (has_quad && bias) plus = *(const float4*)(bias + quad);
        if (has_quad && next.weights) weights = *(const float4*)(next.weights + quad);
        u32 tell = in_block(empty, tells ? told : blockIdx.y);
        wait_for_previous();
        let_next_start();
        int stage = 0, round = 0;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            float d[N / 2];
            int n = tile / tiles_m * COLUMNS + column_of;
            int top = (tile % tiles_m * ROWS_ + row_of) * 128 + half * 64; // this warpgroup's first row of y
            int row = warp * 16 + g;
            if (KIND == ADD)
#pragma unroll
                for (int i = 0; i < N / 8; i++) {
                    int r = top + i * (128 / QUADS) + t / QUADS;
                    old[i] = has_quad && r < rows ? read_4((const float*)y + (size_t)r * columns + quad) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                }
            u32 free = tell; // a stage back
            for (int s = 0; s < steps; s++) {
                gate_wait(full + stage * 8, round % 2);
                u32 at = ring + stage * STAGE;
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    multiply(d, operand(at + half * 64 * 128 + i * 32, 16, 1024), operand(at + 128 * 128 + i * 32, 16, 1024), (s | i) != 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (s > 0 && tells) gate_arrive_at(free);
                free = tell + stage * 8;
                if (++stage == STAGES) stage = 0, round++;
            }
            wgmma_wait<0>();
            if (tells) gate_arrive_at(free);
            if (KIND == ADD) {
                warpgroup_sync<256>(0); // nobody reads the ring any more
                u32 mine = staging + half * 64 * PITCH, low = mine + row * PITCH + c * 8;
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                    float* f = d + j * 4;
                    put_2(low + j * 32, f[0], f[1]);
                    put_2(low + 8 * PITCH + j * 32, f[2], f[3]);
                }
                warpgroup_sync<128>(1 + half);
                // Loads, stores and shuffles in sets of their own: each of a set waits for none before it.
                constexpr int EACH = N / 8;
                float4 v[EACH];
                float sum[EACH], squares[EACH];
                auto local = [&](int i) { return i * (128 / QUADS) + t / QUADS; };
                auto counts = [&](int i) { return has_quad && top + local(i) < rows; };
#pragma unroll
                for (int i = 0; i < EACH; i++) v[i] = get_4(mine + local(i) * PITCH + t % QUADS * 16);
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    float4 o = old[i];
                    v[i] = make_float4(o.x + (v[i].x + plus.x), o.y + (v[i].y + plus.y), o.z + (v[i].z + plus.z), o.w + (v[i].w + plus.w));
                    if (counts(i)) *(float4*)((float*)y + (size_t)(top + local(i)) * columns + quad) = v[i];
                }
                if (!next.weights) continue;
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    sum[i] = (v[i].x + v[i].y) + (v[i].z + v[i].w);
                    squares[i] = (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
                    uint2 scaled = make_uint2(pack_bf16(v[i].x * weights.x, v[i].y * weights.y), pack_bf16(v[i].z * weights.z, v[i].w * weights.w));
                    if (counts(i)) *(uint2*)(next.scaled + (size_t)(top + local(i)) * columns + quad) = scaled;
                }
#pragma unroll
                for (int lanes = 1; lanes < QUADS; lanes *= 2)
#pragma unroll
                    for (int i = 0; i < EACH; i++) {
                        sum[i] += __shfl_xor_sync(FULL, sum[i], lanes);
                        squares[i] += __shfl_xor_sync(FULL, squares[i], lanes);
                    }
#pragma unroll
                for (int i = 0; i < EACH; i++)
                    if (counts(i) && t % QUADS == 0) next.sums[(size_t)(quad / N) * rows + top + local(i)] = make_float2(sum[i], squares[i]);
                continue;
            }
            // Through shared memory, so that rows are written whole.
            if (PERSISTS) warpgroup_sync<128>(1 + half); else warpgroup_sync<352>(2);
            u32 mine = staging + half * 64 * PITCH, low = mine + row * PITCH + c * 4, high = low + 8 * PITCH;
            auto pair = [&](int j, float a0, float a1, float b0, float b1) {
                put(low + j * 16, pack_bf16(a0, a1));
                put(high + j * 16, pack_bf16(b0, b1));
            };
            if (KIND == GEGLU) {
#pragma unroll
                for (int j = 0; j < N / 16; j++) {
                    float *a = d + j * 4, *u = d + N / 4 + j * 4;
                    pair(j, gelu_tanh(a[0]) * u[0], gelu_tanh(a[1]) * u[1], gelu_tanh(a[2]) * u[2], gelu_tanh(a[3]) * u[3]);
                }
            } else {
                float2 low_row = get_2(factors + (half * 64 + row) * 8), high_row = get_2(factors + (half * 64 + row + 8) * 8);
                // Some at a time: reads and writes of shared memory keep their order, and would wait for each other.
                constexpr int GROUP = 4;
#pragma unroll
                for (int first = 0; first < N / 8; first += GROUP) {
                    float4 of[GROUP]; // bias and part of means of two columns
#pragma unroll
                    for (int j = first; j < min(first + GROUP, N / 8); j++) of[j - first] = get_4(vectors + (j * 8 + c * 2) * 8);
#pragma unroll
                    for (int j = first; j < min(first + GROUP, N / 8); j++) {
                        float* a = d + j * 4;
                        float4 b = of[j - first];
                        a[0] = (a[0] - low_row.y * b.y) * low_row.x + b.x;
                        a[1] = (a[1] - low_row.y * b.w) * low_row.x + b.z;
                        a[2] = (a[2] - high_row.y * b.y) * high_row.x + b.x;
                        a[3] = (a[3] - high_row.y * b.w) * high_row.x + b.z;
                        if (KIND == BIAS)
                            pair(j, a[0], a[1], a[2], a[3]);
                        else
                            pair(j, gelu_tanh(a[0]), gelu_tanh(a[1]), gelu_tanh(a[2]), gelu_tanh(a[3]));
                    }
                }
            }
            warpgroup_sync<128>(1 + half);
            constexpr int CHUNKS = WIDE / 8, EACH = CHUNKS / 2; // 16 bytes each, of a row; of a thread
            uint4 values[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) values[i] = get(mine + (i * 128 + t) / CHUNKS * PITCH + (i * 128 + t) % CHUNKS * 16);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int r = top + (i * 128 + t) / CHUNKS, column = n * WIDE + (i * 128 + t) % CHUNKS * 8;
                if (r < rows && column < columns) *(uint4*)((u16*)y + (size_t)r * columns + column) = values[i];
            }
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

#define KERNEL(NAME, N, ROWS_, COLUMNS, STAGES, KIND)                                                                        \
    extern "C" __global__ __launch_bounds__(PRODUCT_THREADS, 1) void NAME(const __grid_constant__ Map x,                   \
            const __grid_constant__ Map w, int rows, int columns, int steps, void* y, const float* bias,                   \
            const float2* sums, int blocks, float per_width, const float* of_means, const float* next_weights,             \
            u16* scaled, float2* next_sums) {                                                                               \
        product<N, ROWS_, COLUMNS, STAGES, KIND>(x, w, rows, columns, steps, y, bias, {sums, blocks, per_width, of_means}, \
                {next_weights, scaled, next_sums});                                                                         \
    }
KERNEL(geglu_bf16, 256, 2, 1, 4, GEGLU)
KERNEL(bias_112, 112, 2, 1, 6, BIAS)
KERNEL(bias_160, 160, 2, 1, 5, BIAS)
KERNEL(bias_gelu_144, 144, 2, 2, 6, BIAS_GELU)
KERNEL(bias_gelu_208, 208, 2, 1, 5, BIAS_GELU)
KERNEL(add_64, 64, 2, 2, 8, ADD)
#endif
