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
// Registers of an accumulator by eights, as operands and in the instruction's text.
#define E(i) "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define T0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define T1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define T2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define T3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define T4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define T5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define T6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define T7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define T8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define T9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define T10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define T11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define T12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define T13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define T14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define T15 "%120, %121, %122, %123, %124, %125, %126, %127"
// d [64 x N] += a [64 x 32 bytes] b [N x 32 bytes]^T, both in shared memory with k contiguous.
#define PRODUCT(N, COUNT, TEXT, OPERANDS, A, B, P)                                                                          \
    __device__ __forceinline__ void multiply(float (&d)[COUNT], u64 a, u64 b, int more) {                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEXT "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n" \
                     : OPERANDS : "l"(a), "l"(b), "r"(more));                                                              \
    }
#define O64 E(0), E(1), E(2), E(3)
PRODUCT(64, 32, T0 ", " T1 ", " T2 ", " T3, O64, "%32", "%33", "%34")
#define O112 E(0), E(1), E(2), E(3), E(4), E(5), E(6)
PRODUCT(112, 56, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6, O112, "%56", "%57", "%58")
#define O144 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8)
PRODUCT(144, 72, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8, O144, "%72", "%73", "%74")
#define O160 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9)
PRODUCT(160, 80, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9, O160, "%80", "%81", "%82")
#define O208 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12)
PRODUCT(208, 104, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12, O208, "%104", "%105", "%106")
#define O256 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12), E(13), E(14), E(15)
PRODUCT(256, 128, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12 ", " T13 ", " T14 ", " T15, O256, "%128", "%129", "%130")

template <int N> __device__ __forceinline__ void warpgroup_sync(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(N) : "memory"); }
__device__ __forceinline__ void put(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }
__device__ __forceinline__ void put_2(u32 at, float a, float b) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory"); }
__device__ __forceinline__ float2 get_2(u32 at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ float4 get_4(u32 at) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at) : "memory");
    return x;
}
// Here and now: neither earlier nor when it is used.
__device__ __forceinline__ float4 read_4(const float* from) {
    float4 x;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from) : "memory");
    return x;
}
__device__ __forceinline__ uint4 get(u32 at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
    return x;
}

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
                int ahead = steps < STAGES ? steps : STAGES; // W fetched before the kernel before has ended
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
#pragma unroll
                for (int i = 0; i < N / 8; i++) {
                    int local = i * (128 / QUADS) + t / QUADS;
                    float4 v = get_4(mine + local * PITCH + t % QUADS * 16), o = old[i];
                    v = make_float4(o.x + (v.x + plus.x), o.y + (v.y + plus.y), o.z + (v.z + plus.z), o.w + (v.w + plus.w));
                    bool counts = has_quad && top + local < rows;
                    size_t at = (size_t)(top + local) * columns + quad;
                    if (counts) *(float4*)((float*)y + at) = v;
                    if (!next.weights) continue;
                    if (counts) *(uint2*)(next.scaled + at) = make_uint2(pack_bf16(v.x * weights.x, v.y * weights.y), pack_bf16(v.z * weights.z, v.w * weights.w));
                    float sum = (v.x + v.y) + (v.z + v.w), squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
#pragma unroll
                    for (int lanes = 1; lanes < QUADS; lanes *= 2) {
                        sum += __shfl_xor_sync(FULL, sum, lanes);
                        squares += __shfl_xor_sync(FULL, squares, lanes);
                    }
                    if (counts && t % QUADS == 0) next.sums[(size_t)(quad / N) * rows + top + local] = make_float2(sum, squares);
                }
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
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                    float* a = d + j * 4;
                    float4 of = get_4(vectors + (j * 8 + c * 2) * 8); // bias and part of means of two columns
                    a[0] = (a[0] - low_row.y * of.y) * low_row.x + of.x;
                    a[1] = (a[1] - low_row.y * of.w) * low_row.x + of.z;
                    a[2] = (a[2] - high_row.y * of.y) * high_row.x + of.x;
                    a[3] = (a[3] - high_row.y * of.w) * high_row.x + of.z;
                    if (KIND == BIAS)
                        pair(j, a[0], a[1], a[2], a[3]);
                    else
                        pair(j, gelu_tanh(a[0]), gelu_tanh(a[1]), gelu_tanh(a[2]), gelu_tanh(a[3]));
                }
            }
            warpgroup_sync<128>(1 + half);
            constexpr int CHUNKS = WIDE / 8; // 16 bytes each
            for (int e = t; e < 64 * CHUNKS; e += 128) {
                int r = e / CHUNKS, chunk = e % CHUNKS, column = n * WIDE + chunk * 8;
                uint4 values = get(mine + r * PITCH + chunk * 16);
                if (top + r >= rows || column >= columns) continue;
                *(uint4*)((u16*)y + (size_t)(top + r) * columns + column) = values;
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
