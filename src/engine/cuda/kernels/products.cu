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
