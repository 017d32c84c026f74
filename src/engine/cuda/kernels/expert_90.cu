// The expert's products on Hopper, after `expert.cu`: its matrix instructions take weights from registers and
// activations from shared memory. Two warpgroups per block, 64 rows of W, each half of the block's k.

#if __CUDA_ARCH__ == 900
// The instruction's operands by the number of accumulators, 4 NT.
#define D1 "%0, %1, %2, %3"
#define D2 D1 ", %4, %5, %6, %7"
#define D3 D2 ", %8, %9, %10, %11"
#define D4 D3 ", %12, %13, %14, %15"
#define D5 D4 ", %16, %17, %18, %19"
#define D6 D5 ", %20, %21, %22, %23"
#define D7 D6 ", %24, %25, %26, %27"
#define D8 D7 ", %28, %29, %30, %31"
#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R1(d) FOUR(d, 0)
#define R2(d) R1(d), FOUR(d, 4)
#define R3(d) R2(d), FOUR(d, 8)
#define R4(d) R3(d), FOUR(d, 12)
#define R5(d) R4(d), FOUR(d, 16)
#define R6(d) R5(d), FOUR(d, 20)
#define R7(d) R6(d), FOUR(d, 24)
#define R8(d) R7(d), FOUR(d, 28)
#if NT == 1
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" D1 "}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
#define REGISTERS(d) R1(d)
#elif NT == 2
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" D2 "}, {%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
#define REGISTERS(d) R2(d)
#elif NT == 3
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {" D3 "}, {%12, %13, %14, %15}, %16, 1, 1, 1, 0;"
#define REGISTERS(d) R3(d)
#elif NT == 4
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" D4 "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
#define REGISTERS(d) R4(d)
#elif NT == 5
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {" D5 "}, {%20, %21, %22, %23}, %24, 1, 1, 1, 0;"
#define REGISTERS(d) R5(d)
#elif NT == 6
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {" D6 "}, {%24, %25, %26, %27}, %28, 1, 1, 1, 0;"
#define REGISTERS(d) R6(d)
#elif NT == 7
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n56k16.f32.bf16.bf16 {" D7 "}, {%28, %29, %30, %31}, %32, 1, 1, 1, 0;"
#define REGISTERS(d) R7(d)
#else
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" D8 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
#define REGISTERS(d) R8(d)
#endif
// d [64 x TOKENS] += a [64 x 16] in registers, b [TOKENS x 16] at 16 * at in shared memory, 8 x 8 matrices one after the other.
__device__ __forceinline__ void multiply(float (&d)[NT * 4], uint4 a, u32 at) {
    asm volatile(PRODUCT : REGISTERS(d) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"((u64)(TOKENS << 16 | at) | 8ull << 32));
}

// Activations of many tokens take their time: what the next kernel asks for before it waits would be in their way.
#define MANY (NT > 4)
// Warps that ask for the pieces of activations: few tokens' come at once, of many tokens' the first are to come first.
#define ASKERS (MANY ? 1 : 4)
// Units of weights that registers have room for.
#define AHEAD_OF(units) ((units) < 10 ? (units) : 10)

// The sums d of a warpgroup: 64 rows of W, from tile `tile` on, over UNITS units of 32 k from `first` on. PARTS 2: the
// warpgroups have the same rows, the second the UNITS after the first's; PARTS 1: the same k, the second the next 64 rows.
// Before the kernel before has ended, weights wait in registers, and those that find no room there in shared memory behind
// the activations. Activations come in PIECES per part, in time counted by `here`: the pieces of all parts, squares, each
// warp's weights in shared memory. SHARED blocks of the cluster, from `fellows` on, have the same activations. EARLY: the
// next kernel may start at once, else once activations are asked for, so that what it asks for is not in their way. Else
// as `product`.
template <int UNITS, int PARTS, int PIECES, int SHARED, bool EARLY, class F>
__device__ __forceinline__ void sums_90(const uint4* packed, const u16* x, int units, int tile, int first,
        const float* squares, float* to_squares, float (&d)[NT * 4], u64* here, F meanwhile, int fellows = 0) {
    const int AHEAD = AHEAD_OF(UNITS), BEHIND = UNITS - AHEAD, EACH = UNITS / PIECES, fellow = (int)blockIdx.y - fellows;
    const u32 unit_bytes = NT * 512, piece = EACH * unit_bytes;
    if (EARLY) let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4, part = PARTS == 2 ? group : 0, unit = first + part * UNITS;
    const uint4* from = packed + ((size_t)((tile + group - part) * 4 + warp % 4) * units + unit) * 64 + lane;
    uint4 a[AHEAD][2];
#pragma unroll
    for (int b = 0; b < AHEAD; b++) {
        a[b][0] = stream16(from + b * 64);
        a[b][1] = stream16(from + b * 64 + 32);
    }
    u64 *mine = here + part * PIECES, *of_squares = here + PARTS * PIECES, *of_behind = of_squares + 1 + warp;
    unsigned char *activations = shared + part * UNITS * unit_bytes, *behind = shared + PARTS * UNITS * unit_bytes + warp * BEHIND * 1024;
    if (BEHIND && lane == 0) {
        expect(of_behind, BEHIND * 1024);
        fetch<1>(behind, from + AHEAD * 64, BEHIND * 1024, of_behind);
    }
    const int p = warp % 4;
    bool fetches = p < min(PIECES, ASKERS) && group < PARTS;
    if (fetches && is_elected())
        for (int i = p; i < PIECES; i += ASKERS) expect(mine + i, piece);
    if (squares && threadIdx.x == 0) expect(of_squares, SQUARES * 4);
    __syncthreads();
    if (SHARED > 1) cluster_arrive_relaxed();
    if (SHARED > 1) cluster_wait();
    const void* source = (const unsigned char*)x + (size_t)unit * unit_bytes + p * piece;
    u32 to = local_address(activations + p * piece), counted = local_address(mine + p);
    have(to, counted, source);
    wait_for_previous();
    if (fetches && is_elected())
#pragma unroll
        for (int i = 0; i < PIECES; i += ASKERS)
            if (SHARED == 1 || (p + i) % SHARED == fellow)
                fetch<SHARED>(to + i * piece, (const unsigned char*)source + i * piece, piece, counted + i * 8, fellows);
    if (squares && warp == (PARTS == 2 ? 2 : 4) && (SHARED == 1 || fellow == SHARED - 1) && is_elected())
        fetch<SHARED>(to_squares, squares, SQUARES * 4, of_squares, fellows);
    if (!EARLY) let_next_start();
    meanwhile();
    u32 at = __shfl_sync(FULL, local_address(activations) & 0x3ffff, 0) >> 4;
    auto add = [&](int u, uint4 (&w)[2]) {
        if (u % EACH == 0) wait_for_data(mine + u / EACH);
        wgmma_fence();
        multiply(d, w[0], at + u * (unit_bytes / 16));
        multiply(d, w[1], at + u * (unit_bytes / 16) + unit_bytes / 32);
    };
#pragma unroll
    for (int u = 0; u < AHEAD; u++) add(u, a[u]);
    wgmma_commit();
    if (BEHIND) { // registers that were read are filled again
        wait_for_data(of_behind);
        wgmma_wait<0>();
#pragma unroll
        for (int u = 0; u < BEHIND; u++) {
            a[u][0] = ((const uint4*)behind)[u * 64 + lane];
            a[u][1] = ((const uint4*)behind)[u * 64 + 32 + lane];
        }
#pragma unroll
        for (int u = 0; u < BEHIND; u++) add(AHEAD + u, a[u]);
        wgmma_commit();
    }
    wgmma_wait<0>();
}

#define HALF ((NT + 1) / 2) // 8 tokens by 8: the first warpgroup finishes so many, the second the rest

// A block's product whose k its warpgroups share, in halves of tokens: own[i] of tokens 8 (group HALF + i) .. (group:
// which warpgroup), rows lane / 4 and + 8 of the warp's 16, as the matrix instruction leaves them. Else as `sums_90`.
template <int UNITS, int PIECES, int SHARED, bool EARLY, class F>
__device__ __forceinline__ void product_90(const uint4* packed, const u16* x, int units, int tile, int first,
        const float* squares, float* to_squares, float4 (&own)[HALF], u64* here, F meanwhile, int fellows = 0) {
    float d[NT * 4] = {};
    sums_90<UNITS, 2, PIECES, SHARED, EARLY>(packed, x, units, tile, first, squares, to_squares, d, here, meanwhile, fellows);
    int group = threadIdx.x / 128;
    // The warpgroups give each other what the other finishes, behind what the other may still read.
    float4* slots = (float4*)(shared + 2 * UNITS * NT * 512 + 8 * (UNITS - AHEAD_OF(UNITS)) * 1024) + threadIdx.x % 128;
#pragma unroll
    for (int n = 0; n < NT; n++)
        if ((n < HALF) == group) slots[n * 128] = make_float4(d[n * 4], d[n * 4 + 1], d[n * 4 + 2], d[n * 4 + 3]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const int j = HALF + i < NT ? HALF + i : i;
        float4 other = slots[(group ? j : i) * 128];
        own[i].x = (group ? d[j * 4] : d[i * 4]) + other.x;
        own[i].y = (group ? d[j * 4 + 1] : d[i * 4 + 1]) + other.y;
        own[i].z = (group ? d[j * 4 + 2] : d[i * 4 + 2]) + other.z;
        own[i].w = (group ? d[j * 4 + 3] : d[i * 4 + 3]) + other.w;
    }
}

// threadIdx.x, asked for again: what is computed from it is not kept in registers from before.
__device__ __forceinline__ int this_thread() {
    int i;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(i));
    return i;
}
__device__ __forceinline__ void copy16(float* to, const float* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(local_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copy4(float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(local_address(to)), "l"(from) : "memory");
}

// As `residual`, but each block finishes 8 tokens. EARLY: as `sums_90` has it.
template <int UNITS, bool EARLY>
__device__ __forceinline__ void residual_90(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
    __shared__ __align__(16) float4 shares[SHARES][4][32];
    __shared__ float parts[8][8], gates[128], scales[128]; // of those that are not clean, then of those that are
    __shared__ __align__(16) float old[8][68];
    __shared__ __align__(8) u64 together, here[2 * 2 + 1 + 8];
    const int rank = blockIdx.y;
    if (threadIdx.x == 0) expect(&together, sizeof(shares));
    __syncwarp();
    cluster_arrive_relaxed(); // all blocks have started
    if (threadIdx.x < 128) {
        int far = threadIdx.x / 64 && clean ? to_clean : 0, of = blockIdx.x * 64 + threadIdx.x % 64;
        copy4(&gates[threadIdx.x], gate + far + of);
        copy4(&scales[threadIdx.x], scale + far + of);
    }
    float4 own[HALF];
    product_90<UNITS, 2, 1, EARLY>(packed, in, UNITS * 2 * SHARES, blockIdx.x, rank * UNITS * 2, nullptr, nullptr, own, here, [&] {
        int token = threadIdx.x / 16, part = threadIdx.x % 16 * 4;
        if (token < 8 && rank * 8 + token < tokens) copy16(&old[token][part], x + (size_t)(rank * 8 + token) * WIDTH + blockIdx.x * 64 + part);
    });
    // To be finished: a row, two tokens.
    int thread = this_thread(), warp = thread / 32, lane = thread % 32, group = warp / 4;
    int first = lane % 4 * 2, row = warp % 4 * 16 + group * 8 + lane / 4, column = blockIdx.x * 64 + row;
    cluster_wait();
    u32 to = local_address(&shares[rank][warp % 4][lane]), counted = local_address(&together);
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        int owner = group * HALF + i;
        if (owner < NT) push4(of_rank_address(to, owner), own[i], of_rank_address(counted, owner));
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (rank >= NT) return;
    wait_for_data(&together);
    float v[2] = {}, square[2];
#pragma unroll
    for (int s = 0; s < SHARES; s++) {
        float2 y = ((const float2*)&shares[s][warp % 4][lane])[group];
        v[0] += y.x; v[1] += y.y;
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int token = rank * 8 + first + e;
        v[e] = old[first + e][row] + gates[row + (token < clean) * 64] * v[e];
        if (token < tokens) x[(size_t)token * WIDTH + column] = v[e];
        square[e] = v[e] * v[e];
#pragma unroll
        for (int d = 4; d < 32; d *= 2) square[e] += __shfl_xor_sync(FULL, square[e], d);
    }
    // A token, two columns.
    first += rank * 8;
    u32 both = transposed(pack_bf16(v[0] * scales[row + (first < clean) * 64], v[1] * scales[row + (first + 1 < clean) * 64]));
    if (rank * 8 + lane / 4 < tokens)
        *(u32*)(xs + fragment(rank * 8 + lane / 4, blockIdx.x * 64 + warp % 4 * 16 + group * 8) + lane % 4 * 2) = both;
    if (lane < 4) {
        parts[warp][lane * 2] = square[0];
        parts[warp][lane * 2 + 1] = square[1];
    }
    __syncthreads();
    if (threadIdx.x < 8) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < 8; w++) sum += parts[w][threadIdx.x];
        squares[blockIdx.x * TOKENS + rank * 8 + threadIdx.x] = sum;
    }
}
#endif

// The kernels of `expert.cu`, with the same arguments but for what they ask for, and but for the first the same grids.

// Where queries and the tokens' own keys and values are: 64 rows (queries: all heads of a token, then of the next) as four
// tiles of 64 columns, 16-byte chunks swizzled within their 128-byte rows, as the matrix instruction takes them.
__device__ __forceinline__ size_t query(int row, int column) {
    return (size_t)(row / 64 * 4 + column / 64) * 4096 + row % 64 * 64 + (column % 64 / 8 ^ row % 8) * 8 + column % 8;
}

// A tile has two blocks, each with half of k; each finishes every second 8 tokens of a warpgroup. q, k, v: as `query` has it.
// grid: ((heads + 2) * dim / 128, 4), cluster 4: two tiles.
extern "C" __global__ __maxnreg__(NT > 7 ? 144 : 136) void expert_qkv_90(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* q, u16* k, u16* v, int v_token, int v_dim, const float* cos,
        const float* sin, const int* valid, int heads, int first, int tokens, float scale) {
#if __CUDA_ARCH__ == 900
    const int UNITS = WIDTH / 128, MINE = (HALF + 1) / 2, dim = HEAD_DIM, half = dim / 2;
    __shared__ __align__(128) float sq[SQUARES];
    __shared__ __align__(16) float4 given[MINE][256];
    __shared__ __align__(8) float r[TOKENS];
    __shared__ float c[128], angles[2][2 * MINE][256];
    __shared__ __align__(8) u64 together, here[2 * 2 + 1 + 8];
    const int part = blockIdx.y / 2, tile = blockIdx.x * 2 + blockIdx.y % 2, head = tile / (half / 32);
    auto start = [&](int thread, int i) { return (thread / 128 * HALF + 2 * i + part) * 8 + thread % 4 * 2; }; // its first two tokens
    auto column = [&](int thread) { return tile % (half / 32) * 32 + thread / 32 % 4 * 8; };
    if (threadIdx.x == 0) {
        int count = 0;
        for (int n = 0; n < NT; n++) count += n % HALF % 2 == part;
        expect(&together, count * 2048);
    }
    if (threadIdx.x < 128) copy4(c + threadIdx.x, shift + (threadIdx.x / 64 && clean ? to_clean : 0) + tile * 64 + threadIdx.x % 64);
    for (int i = 0; i < 2 * MINE; i++) {
        int token = start(threadIdx.x, i / 2) + i % 2, at = (*valid + token) * half + column(threadIdx.x) + threadIdx.x % 32 / 4;
        if (head > heads || token >= tokens) continue;
        copy4(&angles[0][i][threadIdx.x], cos + at);
        copy4(&angles[1][i][threadIdx.x], sin + at);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    float4 own[HALF];
    product_90<UNITS, 2, 2, false>(packed, xs, WIDTH / 32, tile, part * UNITS * 2, squares, sq, own, here, [&] {
        wait_for_data(here + 2 * 2);
        root_mean_squares(sq, r);
    }, part * 2);
    int thread = this_thread(), lane = thread % 32, fellow = blockIdx.y ^ 2, row = thread / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < MINE; i++) { // what the other finishes
        float4 y = part ? own[2 * i] : own[2 * i + 1 < HALF ? 2 * i + 1 : 0];
        if (2 * i + 1 - part < HALF && thread / 128 * HALF + 2 * i + 1 - part < NT)
            push4(of_rank(&given[i][thread], fellow), y, of_rank(&together, fellow));
    }
    wait_for_data(&together);
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        int token = start(thread, i);
        if (2 * i + part >= HALF || token >= TOKENS) break;
        float4 y = part ? own[2 * i + 1 < HALF ? 2 * i + 1 : 0] : own[2 * i], z = given[i][thread];
        float a[2] = {y.x + z.x, y.y + z.y}, b[2] = {y.z + z.z, y.w + z.w};
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float* d = c + (token + e < clean) * 64 + row;
            float x = r[token + e];
            a[e] = a[e] * x + d[0];
            b[e] = b[e] * x + d[8];
            if (head > heads) continue;
            float co = angles[0][2 * i + e][thread], si = angles[1][2 * i + e][thread], s = a[e] * co - b[e] * si, t = b[e] * co + a[e] * si;
            float factor = head < heads ? scale : 1.0f;
            a[e] = s * factor;
            b[e] = t * factor;
        }
        u32 s = transposed(pack_bf16(a[0], a[1])), t = transposed(pack_bf16(b[0], b[1]));
        token = token / 8 * 8 + lane / 4;
        if (token >= tokens) continue;
        u16* to = head < heads ? q + query(token * heads + head, column(thread)) : (head == heads ? k : v) + query(token, column(thread));
        *(u32*)(to + lane % 4 * 2) = s;
        *(u32*)(to + half * 64 + lane % 4 * 2) = t;
    }
#endif
}

// Two kernels are on a multiprocessor at a time, one that runs and one that waits: together they have 256 registers per
// thread and 227 KB of shared memory, so gate's and up's weights wait wherever the others' leave room. Of few tokens a
// tile has one block. Of many, whose activations take long to come, two tiles have two blocks with half of k, a tile per
// warpgroup; each then finishes every second 8 tokens. grid: (MLP / 64, 2), cluster GATE_UP_BLOCKS.
extern "C" __global__ __maxnreg__(NT > 7 ? 144 : 136) void expert_gate_up_90(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* hidden, int tokens) {
#if __CUDA_ARCH__ == 900
    const int B = GATE_UP_BLOCKS, UNITS = WIDTH / 64;
    __shared__ __align__(128) float sq[SQUARES];
    __shared__ __align__(16) float4 given[HALF][256];
    __shared__ __align__(8) float r[TOKENS];
    __shared__ __align__(8) u64 together, here[4 + 1 + 8];
    const int part = blockIdx.y;
    if (B > 1) {
        if (threadIdx.x == 0) expect(&together, (part ? NT / 2 : HALF) * sizeof(given[0]));
        __syncwarp();
        cluster_arrive_relaxed(); // the other block has started
    }
    const int strip = B > 1 ? blockIdx.x * 8 + threadIdx.x / 32 : (blockIdx.x * 2 + part) * 4 + threadIdx.x / 32 % 4; // a warp's 16 rows
    int row = strip * 16 + threadIdx.x % 32 / 4;
    float g[2] = {shift[row], clean ? shift[to_clean + row] : 0.0f}, u[2] = {shift[row + 8], clean ? shift[to_clean + row + 8] : 0.0f};
    auto norms = [&] {
        wait_for_data(here + 4);
        root_mean_squares(sq, r);
    };
    float4 own[HALF];
    if (B > 1) {
        float d[NT * 4] = {};
        sums_90<UNITS, 1, 4, 1, !MANY>(packed, xs, WIDTH / 32, blockIdx.x * 2, part * UNITS, squares, sq, d, here, norms);
        cluster_wait();
        int thread = this_thread();
#pragma unroll
        for (int i = 0; i < HALF; i++) { // what the other finishes
            const int a = 8 * i, b = 2 * i + 1 < NT ? a + 4 : a;
            float4 y = make_float4(d[a], d[a + 1], d[a + 2], d[a + 3]), z = make_float4(d[b], d[b + 1], d[b + 2], d[b + 3]);
            own[i] = part ? z : y;
            if (2 * i + 1 - part < NT) push4(of_rank(&given[i][thread], 1 - part), part ? y : z, of_rank(&together, 1 - part));
        }
        __syncthreads(); // r
        wait_for_data(&together);
    } else {
        product_90<UNITS, 2, 1, true>(packed, xs, WIDTH / 32, blockIdx.x * 2 + part, 0, squares, sq, own, here, norms);
    }
    int thread = this_thread(), lane = thread % 32;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        int n = B > 1 ? 2 * i + part : thread / 128 * HALF + i, token = n * 8 + lane % 4 * 2;
        if (n >= NT) break;
        float4 y = own[i], z = B > 1 ? given[i][thread] : make_float4(0, 0, 0, 0);
        float2 s = *(const float2*)(r + token);
        int e = token < clean, f = token + 1 < clean;
        u32 both = transposed(pack_bf16(gelu_tanh((y.x + z.x) * s.x + (e ? g[1] : g[0])) * ((y.z + z.z) * s.x + (e ? u[1] : u[0])),
                                        gelu_tanh((y.y + z.y) * s.y + (f ? g[1] : g[0])) * ((y.w + z.w) * s.y + (f ? u[1] : u[0]))));
        token = n * 8 + lane / 4;
        if (token < tokens) *(u32*)(hidden + fragment(token, strip * 8) + lane % 4 * 2) = both;
    }
#endif
}

extern "C" __global__ __maxnreg__(120) void expert_o_90(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
#if __CUDA_ARCH__ == 900
    residual_90<QWIDTH / 64 / SHARES, true>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
extern "C" __global__ __maxnreg__(NT > 7 ? 128 : 120) void expert_down_90(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
#if __CUDA_ARCH__ == 900
    residual_90<MLP / 64 / SHARES, !MANY>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
