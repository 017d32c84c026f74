// The action expert in bf16: at most 64 action tokens against weights that stream through once per step.
// Five kernels per block: a product each, with what follows it in its epilogue, and attention. Weights wait in
// registers before the kernel before has ended; clusters of blocks share a product's sum through each other's memory.
//
// A norm needs whole rows, a block has 32 columns of them: so the kernel that makes x also makes xs = x * (1 + scale)
// and each 32 columns' sum of squares, and the next product is W norm(x) = r W xs + W shift, with r = 1 / rms(x) in its
// epilogue. W shift depends on the time alone and is made with the schedule.
//
// NT: tokens / 8, rounded up, and GATE_UP_BLOCKS are set when these are compiled. Hopper's products are in `expert_90.cu`.

#ifndef NT
#define NT 7
#define GATE_UP_BLOCKS 2
#endif
#define TOKENS (NT * 8)
#define WARPS 8
#define MT 2            // weight rows per block / 16
#define PITCH 36        // floats between the tokens of a warp's sums: no two lanes in one bank

// Products take their activations as 8 k of a token after the same 8 k of the token before: the 8 x 8 matrices that the
// matrix units want.
__device__ __forceinline__ size_t fragment(int token, int k) { return ((size_t)(k / 8) * TOKENS + token) * 8 + k % 8; }
#define SHARES 8        // blocks that share the sum of a product that is added to x
#define SQUARES (WIDTH / 64 * TOKENS)

extern __shared__ __align__(128) unsigned char shared[];

__device__ __forceinline__ void mma(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 stream16(const uint4* p) {
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
}

// Packs W [rows, k] row-major: unit (16 rows, 32 k) by unit along k, in it the two fragments of 16 k that the matrix units
// want, lane by lane. `order` gives the source row of each packed row. grid: rows / 16, block: any.
extern "C" __global__ void pack_weights(const u32* w, uint4* packed, const int* order, int k) {
    int fragments = k / 16;
    for (int e = threadIdx.x; e < fragments * 32; e += blockDim.x) {
        int lane = e % 32, at = e / 32 * 8 + lane % 4;
        const u32 *f = w + (size_t)order[blockIdx.x * 16 + lane / 4] * (k / 2) + at, *g = w + (size_t)order[blockIdx.x * 16 + lane / 4 + 8] * (k / 2) + at;
        packed[(size_t)blockIdx.x * fragments * 32 + e] = make_uint4(f[0], g[0], f[4], g[4]);
    }
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ u32 local_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 of_rank_address(u32 mine, int rank) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(mine), "r"(rank));
    return at;
}
__device__ __forceinline__ u32 of_rank(const void* mine, int rank) { return of_rank_address(local_address(mine), rank); }
// A barrier that waits for nobody's memory: all blocks have started, or are done with something.
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
// A barrier for data: completes when `bytes` have come. To be followed by a barrier of the cluster.
__device__ __forceinline__ void expect(u64* barrier, u32 bytes) {
    u32 at = local_address(barrier);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for_data(u64* barrier) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n@!p bra again;\n}" ::"r"(local_address(barrier)) : "memory");
}
// From memory into shared memory, counted by a barrier: this block's, or those of SHARED blocks of the cluster from `first`.
template <int SHARED> __device__ __forceinline__ void fetch(u32 to, const void* from, u32 bytes, u32 barrier, int first = 0) {
    if (SHARED == 1)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
    else
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"((u16)(((1 << SHARED) - 1) << first)) : "memory");
}
template <int SHARED> __device__ __forceinline__ void fetch(const void* to, const void* from, u32 bytes, u64* barrier, int first = 0) {
    fetch<SHARED>(local_address(to), from, bytes, local_address(barrier), first);
}
// Computed here, not where they are needed.
__device__ __forceinline__ void have(u32& a, u32& b, const void*& c) { asm volatile("" : "+r"(a), "+r"(b), "+l"(c)); }
// Four 8 x 8 matrices, a row of 16 bytes per lane: matrix lane / 8, row lane % 8.
__device__ __forceinline__ uint4 matrices(u32 row) {
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(row) : "memory");
    return r;
}
__device__ __forceinline__ void push2(u32 at, float x, float y, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];" ::"r"(at), "f"(x), "f"(y), "r"(barrier) : "memory");
}
__device__ __forceinline__ float load_of_rank(const float* mine, int rank) {
    float x;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(of_rank(mine, rank)) : "memory");
    return x;
}
__device__ __forceinline__ float4 load4_of_rank(const float* mine, int rank) {
    float4 x;
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(of_rank(mine, rank)) : "memory");
    return x;
}

// Weights that a later kernel reads, on their way into the cache; each block asks for its part.
__device__ __forceinline__ void ask_for(const char* next, int kilobytes) {
    int blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
    int each = (kilobytes + blocks - 1) / blocks, first = block * each, count = min(each, kilobytes - first);
    if (threadIdx.x == 0 && count > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(next + (size_t)first * 1024), "r"(count * 1024) : "memory");
}

// Products: 8 warps, KG groups of them along k, the rest along rows, 32 each.
#define ROWS(kg) (WARPS / (kg) * 32)

// Each warp's sums [TOKENS][PITCH] of ROWS(KG) rows of `tile`, over k in KG * KB units of 32 from `first`; `units` in a
// row of W, AHEAD of them on their way before the kernel before has ended. SHARED: blocks along y with the same x: each
// fetches its part of it for all. `meanwhile` is done while x comes. `squares` (or null) come along into `to_squares`,
// counted by arrived[KG].
template <int KB, int KG, int SHARED, int AHEAD, class F>
__device__ __forceinline__ const float* product(const uint4* packed, const u16* x, int units, int tile, int first,
                                                const float* squares, float* to_squares, u64* arrived, F meanwhile) {
    const u32 bytes = KB * NT * 512;
    let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kg = warp % KG, unit = first + kg * KB;
    const uint4* from = packed + ((size_t)(tile * (WARPS / KG) + warp / KG) * MT * units + unit) * 64 + lane;
    uint4 a[AHEAD][MT][2];
#pragma unroll
    for (int b = 0; b < AHEAD; b++)
#pragma unroll
        for (int m = 0; m < MT; m++) {
            a[b][m][0] = stream16(from + ((size_t)m * units + b) * 64);
            a[b][m][1] = stream16(from + ((size_t)m * units + b) * 64 + 32);
        }
    const unsigned char* mine = shared + kg * bytes;
    bool fetches = lane == 0 && warp < KG;
    if (fetches) expect(&arrived[kg], bytes);
    if (squares && threadIdx.x == 0) expect(&arrived[KG], SQUARES * 4);
    __syncthreads();
    if (SHARED > 1) cluster_arrive_relaxed();
    if (SHARED > 1) cluster_wait();
    wait_for_previous();
    if (fetches && (SHARED == 1 || kg % SHARED == (int)blockIdx.y))
        fetch<SHARED>(mine, x + (size_t)unit * NT * 256, bytes, &arrived[kg]);
    if (squares && threadIdx.x == 0 && (SHARED == 1 || blockIdx.y == SHARED - 1))
        fetch<SHARED>(to_squares, squares, SQUARES * 4, &arrived[KG]);
    meanwhile();
    wait_for_data(&arrived[kg]);
    float acc[MT][NT][4] = {};
    u32 rows = local_address(mine) + (lane / 8 * TOKENS + lane % 8) * 16;
#pragma unroll
    for (int b = 0; b < KB; b++) {
        uint4 t[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) t[n] = matrices(rows + (b * 4 * TOKENS + n * 8) * 16);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    uint4 f = a[b % AHEAD][m][half];
                    mma(acc[m][n], f.x, f.y, f.z, f.w, half ? t[n].z : t[n].x, half ? t[n].w : t[n].y);
                }
        if (b + AHEAD < KB)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                a[b % AHEAD][m][0] = stream16(from + ((size_t)m * units + b + AHEAD) * 64);
                a[b % AHEAD][m][1] = stream16(from + ((size_t)m * units + b + AHEAD) * 64 + 32);
            }
    }
    __syncthreads(); // all have read their activations
    float* sums = (float*)shared + warp * (TOKENS * PITCH);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = m * 16 + lane / 4 + 8 * (e / 2), token = n * 8 + lane % 4 * 2 + e % 2;
                sums[token * PITCH + row] = acc[m][n][e];
            }
    __syncthreads();
    return (const float*)shared;
}
// The warps' sums together, in their order.
template <int KG> __device__ __forceinline__ float whole(const float* sums, int token, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < KG; w++) sum += sums[(row / 32 * KG + w) * (TOKENS * PITCH) + token * PITCH + row % 32];
    return sum;
}
template <int KG> __device__ __forceinline__ float2 whole2(const float* sums, int token, int row) {
    float2 sum = {};
#pragma unroll
    for (int w = 0; w < KG; w++) {
        float2 y = *(const float2*)(sums + (row / 32 * KG + w) * (TOKENS * PITCH) + token * PITCH + row % 32);
        sum.x += y.x; sum.y += y.y;
    }
    return sum;
}
template <int KG> __device__ __forceinline__ float4 whole4(const float* sums, int token, int row) {
    float4 sum = {};
#pragma unroll
    for (int w = 0; w < KG; w++) {
        float4 y = *(const float4*)(sums + (row / 32 * KG + w) * (TOKENS * PITCH) + token * PITCH + row % 32);
        sum.x += y.x; sum.y += y.y; sum.z += y.z; sum.w += y.w;
    }
    return sum;
}

// r[token] = 1 / rms(x), from the sums of squares of each 64 columns.
__device__ __forceinline__ void root_mean_squares(const float* squares, float* r) {
    int token = threadIdx.x / 4;
    float sum = 0.0f;
    if (token < TOKENS)
#pragma unroll
        for (int i = 0; i < WIDTH / 256; i++) sum += squares[(threadIdx.x % 4 + 4 * i) * TOKENS + token];
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    if (token < TOKENS && threadIdx.x % 4 == 0) r[token] = rsqrtf(sum / WIDTH + 1e-6f);
}

// x += gate * (W in); xs and squares for the next norm. Cluster: SHARES blocks in y, each with a share of k; each then
// finishes every SHARES-th token. grid: (WIDTH / 64, SHARES).
template <int KB>
__device__ __forceinline__ void residual(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
    const int KG = 4, EACH = NT; // tokens of a block: TOKENS / SHARES
    __shared__ __align__(16) float shares[SHARES][EACH][64];
    __shared__ __align__(8) u64 together, arrived[KG];
    int mine = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.y, column = blockIdx.x * 64 + lane * 2;
    int token = mine * SHARES + rank, owned = (tokens - rank + SHARES - 1) / SHARES;
    bool finishes = mine < EACH && token < tokens;
    int far = token < clean ? to_clean : 0;
    float2 old = {};
    if (threadIdx.x == 0) expect(&together, owned * SHARES * 256);
    __syncwarp();
    cluster_arrive_relaxed(); // all blocks have started
    float2 gates = *(const float2*)(gate + far + column), scales = *(const float2*)(scale + far + column);
    const float* sums = product<KB, KG, 1, KB>(packed, in, KB * KG * SHARES, blockIdx.x, rank * KB * KG, nullptr, nullptr, arrived, [&] {
        if (finishes) old = __ldcg((const float2*)(x + (size_t)token * WIDTH + column));
    });
    cluster_wait();
    for (int i = threadIdx.x; i < 16 * tokens; i += WARPS * 32) {
        int t = i / 16, row = i % 16 * 4, owner = t % SHARES;
        push4(of_rank(&shares[rank][t / SHARES][row], owner), whole4<KG>(sums, t, row), of_rank(&together, owner));
    }
    if (finishes) {
        wait_for_data(&together);
        float2 y = {};
#pragma unroll
        for (int s = 0; s < SHARES; s++) {
            float2 z = *(const float2*)&shares[s][mine][lane * 2];
            y.x += z.x; y.y += z.y;
        }
        float2 v = make_float2(old.x + gates.x * y.x, old.y + gates.y * y.y);
        *(float2*)(x + (size_t)token * WIDTH + column) = v;
        *(u32*)(xs + fragment(token, column)) = pack_bf16(v.x * scales.x, v.y * scales.y);
        float square = warp_sum(v.x * v.x + v.y * v.y);
        if (lane == 0) squares[blockIdx.x * TOKENS + token] = square;
    } else if (owned > 0) {
        wait_for_data(&together);
    }
}
#endif

// x = (action += pending * velocity) W^T + b; xs and squares of x. w [dim, WIDTH]. grid: tokens, block: WIDTH / 4. The
// first `clean` rows' scale is `to_clean` floats further on.
extern "C" __global__ void expert_begin(float* action, const float* velocity, float pending, const float* w, const float* b,
        float* x, const float* scale, int clean, int to_clean, u16* xs, float* squares, int dim) {
    __shared__ float a[128];
    int i = threadIdx.x, token = blockIdx.x;
    float4 s = ((const float4*)(scale + (token < clean ? to_clean : 0)))[i], v = ((const float4*)b)[i], early[16];
#pragma unroll
    for (int j = 0; j < 16; j++) early[j] = j < dim ? ((const float4*)w)[j * (WIDTH / 4) + i] : make_float4(0, 0, 0, 0);
    // The others are to be in the cache by then: they left it since the last step.
    if (i % 8 == 0)
        for (int j = 16; j < dim; j++) asm volatile("prefetch.global.L2 [%0];" ::"l"((const float4*)w + j * (WIDTH / 4) + i));
    let_next_start();
    wait_for_previous();
    for (int j = i; j < dim; j += WIDTH / 4) {
        float value = __ldcg(action + token * dim + j);
        if (pending != 0.0f) {
            value += pending * __ldcg(velocity + token * dim + j);
            action[token * dim + j] = value;
        }
        a[j] = value;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 16; j++)
        if (j < dim) {
            v.x += a[j] * early[j].x; v.y += a[j] * early[j].y; v.z += a[j] * early[j].z; v.w += a[j] * early[j].w;
        }
#pragma unroll 16
    for (int j = 16; j < dim; j++) {
        float4 y = ((const float4*)w)[j * (WIDTH / 4) + i];
        v.x += a[j] * y.x; v.y += a[j] * y.y; v.z += a[j] * y.z; v.w += a[j] * y.w;
    }
    ((float4*)x)[(size_t)token * WIDTH / 4 + i] = v;
    *(uint2*)(xs + fragment(token, i * 4)) = make_uint2(pack_bf16(v.x * s.x, v.y * s.y), pack_bf16(v.z * s.z, v.w * s.w));
    float sum = v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) sum += __shfl_xor_sync(FULL, sum, d);
    if (i % 16 == 0) squares[i / 16 * TOKENS + token] = sum;
}

// velocity = norm(x) W^T + b in f32; W [dim, WIDTH]. grid: (tokens, dim / 16 rounded up), so that all of W is there before
// x; block: 256. The first `clean` rows' modulation is `to_clean` floats further on.
extern "C" __global__ __launch_bounds__(256) void expert_end(const float* x, const float* scale, const float* shift, int clean, int to_clean,
        const float* w, const float* b, float* velocity, int dim) {
    __shared__ float4 scales[WIDTH / 4], shifts[WIDTH / 4];
    const int Q = WIDTH / 128;
    int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, far = token < clean ? to_clean : 0;
    for (int i = threadIdx.x; i < WIDTH / 4; i += 256) {
        scales[i] = ((const float4*)(scale + far))[i];
        shifts[i] = ((const float4*)(shift + far))[i];
    }
    float4 early[2][Q];
    float bias[2];
#pragma unroll
    for (int o = 0; o < 2; o++) {
        int row = blockIdx.y * 16 + o * 8 + warp;
        bias[o] = row < dim ? b[row] : 0.0f;
#pragma unroll
        for (int i = 0; i < Q; i++) early[o][i] = row < dim ? ((const float4*)w)[row * (WIDTH / 4) + lane + i * 32] : make_float4(0, 0, 0, 0);
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    float4 h[Q];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Q; i++) {
        h[i] = __ldcg((const float4*)x + (size_t)token * (WIDTH / 4) + lane + i * 32);
        squares += h[i].x * h[i].x + h[i].y * h[i].y + h[i].z * h[i].z + h[i].w * h[i].w;
    }
    float r = rsqrtf(warp_sum(squares) / WIDTH + 1e-6f);
#pragma unroll
    for (int i = 0; i < Q; i++) {
        float4 s = scales[lane + i * 32], t = shifts[lane + i * 32];
        h[i].x = h[i].x * r * s.x + t.x; h[i].y = h[i].y * r * s.y + t.y; h[i].z = h[i].z * r * s.z + t.z; h[i].w = h[i].w * r * s.w + t.w;
    }
#pragma unroll
    for (int o = 0; o < 2; o++) {
        int row = blockIdx.y * 16 + o * 8 + warp;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < Q; i++) {
            float4 y = early[o][i];
            sum += h[i].x * y.x + h[i].y * y.y + h[i].z * y.z + h[i].w * y.w;
        }
        sum = warp_sum(sum);
        if (lane == 0 && row < dim) velocity[token * dim + row] = sum + bias[o];
    }
}

// W shift of `count` times: out [.., pitch], packed rows in order. x: fragments [TOKENS, WIDTH]. grid: rows / 32.
extern "C" __global__ __launch_bounds__(256) void expert_shift(const uint4* packed, const u16* x, float* out, int count, int pitch) {
#if __CUDA_ARCH__ >= 900
    __shared__ __align__(8) u64 arrived[8];
    const float* sums = product<WIDTH / 256, 8, 1, WIDTH / 256>(packed, x, WIDTH / 32, blockIdx.x, 0, nullptr, nullptr, arrived, [] {});
    for (int i = threadIdx.x; i < 32 * count; i += 256)
        out[(size_t)(i / 32) * pitch + blockIdx.x * 32 + i % 32] = whole<8>(sums, i / 32, i % 32);
#endif
}

// q, k, v of the action tokens, q and k rotated to their positions; q is scaled by 1/16 as well, exactly.
// Packed rows, 16 by 16: 8 of a head's first half, then their partners of the second half.
// grid: ((heads + 2) * dim / 128, 4), cluster 4. v lies at (token * v_token + j * v_dim).
extern "C" __global__ __launch_bounds__(256, 2) void expert_qkv(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* q, u16* k, u16* v, int v_token, int v_dim, const float* cos,
        const float* sin, const int* valid, int heads, int first, int tokens, float scale, const char* next, int kilobytes) {
#if __CUDA_ARCH__ > 900
    __shared__ __align__(128) float sq[SQUARES];
    __shared__ float r[TOKENS], c[2][32], angles[2][TOKENS][16];
    __shared__ __align__(8) u64 arrived[9];
    const int dim = HEAD_DIM, half = dim / 2;
    int tile = blockIdx.x * 4 + blockIdx.y, head = tile / (half / 16), j0 = tile % (half / 16) * 16;
    ask_for(next, kilobytes);
    if (threadIdx.x < 32) c[0][threadIdx.x] = shift[tile * 32 + threadIdx.x];
    if (threadIdx.x < 32 && clean) c[1][threadIdx.x] = shift[to_clean + tile * 32 + threadIdx.x];
    if (head <= heads)
        for (int i = threadIdx.x; i < 16 * tokens; i += 256) {
            int at = (*valid + i / 16) * half + j0 + i % 16;
            angles[0][i / 16][i % 16] = cos[at];
            angles[1][i / 16][i % 16] = sin[at];
        }
    const float* sums = product<WIDTH / 256, 8, 4, WIDTH / 256>(packed, xs, WIDTH / 32, tile, 0, squares, sq, arrived, [&] {
        wait_for_data(&arrived[8]);
        root_mean_squares(sq, r);
    });
    for (int i = threadIdx.x; i < 8 * tokens; i += 256) {
        int token = i / 8, e = i % 8 * 2, row = e / 8 * 16 + e % 8, j = j0 + e;
        float2 a = whole2<8>(sums, token, row), b = whole2<8>(sums, token, row + 8);
        const float* d = c[token < clean] + row;
        float x = r[token];
        a.x = a.x * x + d[0]; a.y = a.y * x + d[1];
        b.x = b.x * x + d[8]; b.y = b.y * x + d[9];
        if (head <= heads) {
            const float *co = angles[0][token] + e, *si = angles[1][token] + e;
            float s0 = a.x * co[0] - b.x * si[0], s1 = a.y * co[1] - b.y * si[1];
            float t0 = b.x * co[0] + a.x * si[0], t1 = b.y * co[1] + a.y * si[1];
            float factor = head < heads ? scale : 1.0f;
            u16* to = head < heads ? q + ((size_t)token * heads + head) * dim : k + (size_t)(first + token) * dim;
            *(u32*)(to + j) = pack_bf16(s0 * factor, s1 * factor);
            *(u32*)(to + half + j) = pack_bf16(t0 * factor, t1 * factor);
        } else {
            u16* to = v + (size_t)(first + token) * v_token;
            to[(size_t)j * v_dim] = bf16_of(a.x);
            to[(size_t)(j + 1) * v_dim] = bf16_of(a.y);
            to[(size_t)(half + j) * v_dim] = bf16_of(b.x);
            to[(size_t)(half + j + 1) * v_dim] = bf16_of(b.y);
        }
    }
#endif
}

// hidden = GELU(gate) * up. Packed rows, 16 by 16: 8 of gate, then the same 8 of up. grid: (mlp / 64, 2), cluster 2: the
// blocks fill the GPU once, and clusters of 4 would not fit everywhere.
extern "C" __global__ __launch_bounds__(256, 2) void expert_gate_up(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* hidden, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ > 900
    __shared__ __align__(128) float sq[SQUARES];
    __shared__ float r[TOKENS], c[2][64];
    __shared__ __align__(8) u64 arrived[5];
    int tile = blockIdx.x * 2 + blockIdx.y;
    ask_for(next, kilobytes);
    if (threadIdx.x < 64) c[0][threadIdx.x] = shift[tile * 64 + threadIdx.x];
    if (threadIdx.x < 64 && clean) c[1][threadIdx.x] = shift[to_clean + tile * 64 + threadIdx.x];
    const float* sums = product<WIDTH / 128, 4, 2, WIDTH / 128 < 4 ? WIDTH / 128 : 4>(packed, xs, WIDTH / 32, tile, 0, squares, sq, arrived, [&] {
        wait_for_data(&arrived[4]);
        root_mean_squares(sq, r);
    });
    for (int i = threadIdx.x; i < 16 * tokens; i += 256) {
        int token = i / 16, e = i % 16 * 2, row = e / 8 * 16 + e % 8;
        const float* d = c[token < clean] + row;
        float x = r[token];
        float2 g = whole2<4>(sums, token, row), u = whole2<4>(sums, token, row + 8);
        *(u32*)(hidden + fragment(token, tile * 32 + e)) =
            pack_bf16(gelu_tanh(g.x * x + d[0]) * (u.x * x + d[8]), gelu_tanh(g.y * x + d[1]) * (u.y * x + d[9]));
    }
#endif
}

extern "C" __global__ __launch_bounds__(256, 2) void expert_o(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ > 900
    ask_for(next, kilobytes);
    residual<QWIDTH / 128 / SHARES>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
extern "C" __global__ __launch_bounds__(256, 2) void expert_down(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ > 900
    ask_for(next, kilobytes);
    residual<MLP / 128 / SHARES>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
