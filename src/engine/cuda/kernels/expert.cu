// The action expert in bf16: at most 64 action tokens against weights that stream through once per step.
// Five kernels per block: a product each, with what follows it in its epilogue, and attention. Weights wait in
// registers before the kernel before has ended; clusters of blocks share a product's sum through each other's memory.
//
// A norm needs whole rows, a block has 32 columns of them: so the kernel that makes x also makes xs = x * (1 + scale)
// and each 32 columns' sum of squares, and the next product is W norm(x) = r W xs + W shift, with r = 1 / rms(x) in its
// epilogue. W shift depends on the time alone and is made with the schedule.
//
// NT: tokens / 8, rounded up, set when these are compiled.

#ifndef NT
#define NT 7
#endif
#define TOKENS (NT * 8)
#define WARPS 8
#define MT 2            // weight rows per block / 16
#define PITCH 36        // floats between the tokens of a warp's sums: no two lanes in one bank

// Products take their activations as fragments: unit of 32 k by unit, in it 8 tokens by 8 tokens, in those lane by lane
// (token % 8, k % 32 / 8) 8 values.
__device__ __forceinline__ size_t fragment(int token, int k) {
    return (((size_t)(k / 32) * NT + token / 8) * 32 + token % 8 * 4 + k % 32 / 8) * 8 + k % 8;
}
// Bytes of shared memory for a warp: its activations, then its sums.
#define ROOM(kb) ((kb) * NT * 512 > TOKENS * PITCH * 4 ? (kb) * NT * 512 : TOKENS * PITCH * 4)

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

// Packs W [rows, k] row-major: unit (16 rows, 32 k) by unit along k, in it two fragments, lane by lane: rows g and g + 8
// (g = lane / 4) of k = 8 (lane % 4) + 0..3, then + 4..7, as (g: 2 k), (g + 8: 2 k), (g: 2 k), (g + 8: 2 k).
// `order` gives the source row of each packed row. grid: rows / 16, block: any.
extern "C" __global__ void pack_weights(const uint2* w, uint4* packed, const int* order, int k) {
    int units = k / 32;
    for (int e = threadIdx.x; e < units * 64; e += blockDim.x) {
        int unit = e / 64, which = e % 64 / 32, lane = e % 32, at = unit * 8 + lane % 4 * 2 + which;
        uint2 f = w[(size_t)order[blockIdx.x * 16 + lane / 4] * (k / 4) + at], g = w[(size_t)order[blockIdx.x * 16 + lane / 4 + 8] * (k / 4) + at];
        packed[((size_t)blockIdx.x * units + unit) * 64 + which * 32 + lane] = make_uint4(f.x, g.x, f.y, g.y);
    }
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ u32 local_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 of_rank(const void* mine, int rank) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(local_address(mine)), "r"(rank));
    return at;
}
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
// Into another block's shared memory, counted by its barrier.
__device__ __forceinline__ void push4(u32 at, float4 x, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier) : "memory");
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

// Each warp's sums [TOKENS][PITCH], 32 rows of `tile` over k in KB units of 32 each, `units` in a row of W, from `first`.
// SHARED: blocks along y with the same x: each fetches its part of it for all. `meanwhile` is done while x comes.
template <int KB, int SHARED, class F>
__device__ __forceinline__ const float* product(const uint4* packed, const u16* x, int units, int tile, int first, F meanwhile) {
    __shared__ __align__(8) u64 arrived[WARPS];
    const u32 bytes = KB * NT * 512;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = first + warp * KB;
    const uint4* from = packed + ((size_t)tile * MT * units + unit) * 64 + lane;
    uint4 a[KB][MT][2];
#pragma unroll
    for (int b = 0; b < KB; b++)
#pragma unroll
        for (int m = 0; m < MT; m++) {
            a[b][m][0] = stream16(from + ((size_t)m * units + b) * 64);
            a[b][m][1] = stream16(from + ((size_t)m * units + b) * 64 + 32);
        }
    unsigned char* mine = shared + warp * ROOM(KB);
    u32 barrier = local_address(&arrived[warp]);
    if (lane == 0) expect(&arrived[warp], bytes);
    __syncwarp();
    if (SHARED > 1) cluster_arrive_relaxed();
    let_next_start();
    if (SHARED > 1) cluster_wait();
    wait_for_previous();
    if (lane == 0) {
        const u16* source = x + (size_t)unit * NT * 256;
        if (SHARED == 1)
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(local_address(mine)), "l"(source), "r"(bytes), "r"(barrier) : "memory");
        else if (warp % SHARED == (int)blockIdx.y)
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(local_address(mine)), "l"(source), "r"(bytes), "r"(barrier), "h"((u16)((1 << SHARED) - 1)) : "memory");
    }
    meanwhile();
    wait_for_data(&arrived[warp]);
    float acc[MT][NT][4] = {};
#pragma unroll
    for (int b = 0; b < KB; b++) {
        uint4 t[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) t[n] = ((const uint4*)mine)[(b * NT + n) * 32 + lane];
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    uint4 f = a[b][m][half];
                    mma(acc[m][n], f.x, f.y, f.z, f.w, half ? t[n].z : t[n].x, half ? t[n].w : t[n].y);
                }
    }
    __syncwarp();
    float* sums = (float*)mine;
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
template <int KB> __device__ __forceinline__ float whole(const float* sums, int token, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += sums[w * (ROOM(KB) / 4) + token * PITCH + row];
    return sum;
}

template <int KB> __device__ __forceinline__ float4 whole4(const float* sums, int token, int row) {
    float4 sum = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        float4 y = *(const float4*)(sums + w * (ROOM(KB) / 4) + token * PITCH + row);
        sum.x += y.x; sum.y += y.y; sum.z += y.z; sum.w += y.w;
    }
    return sum;
}

// r[token] = 1 / rms(x), from the sums of squares of each 32 columns.
__device__ __forceinline__ void root_mean_squares(const float* squares, float* r) {
    int token = threadIdx.x / 4;
    float sum = 0.0f;
    if (token < TOKENS)
#pragma unroll
        for (int i = 0; i < WIDTH / 128; i++) sum += __ldcg(squares + (threadIdx.x % 4 + 4 * i) * TOKENS + token);
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    if (token < TOKENS && threadIdx.x % 4 == 0) r[token] = rsqrtf(sum / WIDTH + 1e-6f);
}

// x += gate * (W in); xs and squares for the next norm. Cluster: SHARES blocks in y, each with a share of k; each then
// finishes every SHARES-th token. grid: (WIDTH / 32, SHARES).
template <int KB, int SHARES>
__device__ __forceinline__ void residual(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
    const int EACH = (TOKENS + SHARES - 1) / SHARES, MOST = (EACH + WARPS - 1) / WARPS;
    __shared__ __align__(16) float shares[SHARES][EACH][32];
    __shared__ __align__(8) u64 together;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.y, column = blockIdx.x * 32 + lane;
    float old[MOST];
    int owned = (tokens - rank + SHARES - 1) / SHARES;
    if (threadIdx.x == 0) expect(&together, owned * SHARES * 128);
    __syncwarp();
    cluster_arrive_relaxed(); // all blocks have started
    float gates[2] = {gate[column], clean ? gate[to_clean + column] : 0.0f};
    float scales[2] = {scale[column], clean ? scale[to_clean + column] : 0.0f};
    const float* sums = product<KB, 1>(packed, in, KB * WARPS * SHARES, blockIdx.x, rank * KB * WARPS, [&] {
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int token = (warp + i * WARPS) * SHARES + rank;
            old[i] = token < tokens ? __ldcg(x + (size_t)token * WIDTH + column) : 0.0f;
        }
    });
    cluster_wait();
    for (int i = threadIdx.x; i < 8 * tokens; i += WARPS * 32) {
        int token = i / 8, row = i % 8 * 4, owner = token % SHARES;
        push4(of_rank(&shares[rank][token / SHARES][row], owner), whole4<KB>(sums, token, row), of_rank(&together, owner));
    }
    if (owned > 0) wait_for_data(&together);
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int mine = warp + i * WARPS, token = mine * SHARES + rank;
        if (mine < EACH && token < tokens) {
            float y = 0.0f;
#pragma unroll
            for (int s = 0; s < SHARES; s++) y += shares[s][mine][lane];
            int which = token < clean;
            float v = old[i] + gates[which] * y;
            x[(size_t)token * WIDTH + column] = v;
            xs[fragment(token, column)] = bf16_of(v * scales[which]);
            float square = warp_sum(v * v);
            if (lane == 0) squares[blockIdx.x * TOKENS + token] = square;
        }
    }
}
#endif

// xs and squares of x as the chunk comes in. grid: tokens, block: WIDTH / 4. The first `clean` rows' scale is
// `to_clean` floats further on.
extern "C" __global__ void expert_start(const float* x, const float* scale, int clean, int to_clean, u16* xs, float* squares) {
    int i = threadIdx.x, token = blockIdx.x;
    float4 s = ((const float4*)(scale + (token < clean ? to_clean : 0)))[i];
    let_next_start();
    wait_for_previous();
    float4 v = __ldcg((const float4*)x + (size_t)token * WIDTH / 4 + i);
    *(uint2*)(xs + fragment(token, i * 4)) = make_uint2(pack_bf16(v.x * s.x, v.y * s.y), pack_bf16(v.z * s.z, v.w * s.w));
    float sum = v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
#pragma unroll
    for (int d = 4; d > 0; d >>= 1) sum += __shfl_xor_sync(FULL, sum, d);
    if (i % 8 == 0) squares[i / 8 * TOKENS + token] = sum;
}

// W shift of `count` times: out [.., pitch], packed rows in order. x: fragments [TOKENS, WIDTH]. grid: rows / 32.
extern "C" __global__ __launch_bounds__(256) void expert_shift(const uint4* packed, const u16* x, float* out, int count, int pitch) {
#if __CUDA_ARCH__ >= 900
    const int KB = WIDTH / 32 / WARPS;
    const float* sums = product<KB, 1>(packed, x, WIDTH / 32, blockIdx.x, 0, [] {});
    for (int i = threadIdx.x; i < 32 * count; i += 256)
        out[(size_t)(i / 32) * pitch + blockIdx.x * 32 + i % 32] = whole<KB>(sums, i / 32, i % 32);
#endif
}

// q, k, v of the action tokens, q and k rotated to their positions; q is scaled by 1/16 as well, exactly.
// Packed rows of a tile: 16 of a head's first half, then their partners of the second half.
// grid: ((heads + 2) * dim / 128, 4), cluster 4. v lies at (token * v_token + j * v_dim).
extern "C" __global__ __launch_bounds__(256, 1) void expert_qkv(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* q, u16* k, u16* v, int v_token, int v_dim, const float* cos,
        const float* sin, const int* valid, int heads, int first, int tokens, float scale, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    __shared__ float r[TOKENS], c[2][32], angles[2][TOKENS][16];
    const int dim = HEAD_DIM, half = dim / 2, KB = WIDTH / 32 / WARPS;
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
    const float* sums = product<KB, 4>(packed, xs, WIDTH / 32, tile, 0, [&] { root_mean_squares(squares, r); });
    for (int i = threadIdx.x; i < 16 * tokens; i += 256) {
        int token = i / 16, e = i % 16, j = j0 + e, which = token < clean;
        float a = whole<KB>(sums, token, e) * r[token] + c[which][e];
        float b = whole<KB>(sums, token, 16 + e) * r[token] + c[which][16 + e];
        if (head <= heads) {
            float x = angles[0][token][e], y = angles[1][token][e];
            float s = a * x - b * y, t = b * x + a * y;
            if (head < heads) {
                u16* to = q + ((size_t)token * heads + head) * dim;
                to[j] = bf16_of(s * scale);
                to[half + j] = bf16_of(t * scale);
            } else {
                u16* to = k + (size_t)(first + token) * dim;
                to[j] = bf16_of(s);
                to[half + j] = bf16_of(t);
            }
        } else {
            u16* to = v + (size_t)(first + token) * v_token;
            to[(size_t)j * v_dim] = bf16_of(a);
            to[(size_t)(half + j) * v_dim] = bf16_of(b);
        }
    }
#endif
}

// hidden = GELU(gate) * up. Packed rows of a tile: 16 of gate, then the same 16 of up. grid: (mlp / 64, 4), cluster 4.
extern "C" __global__ __launch_bounds__(256, 2) void expert_gate_up(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* hidden, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    __shared__ float r[TOKENS], c[2][32];
    const int KB = WIDTH / 32 / WARPS;
    int tile = blockIdx.x * 4 + blockIdx.y;
    ask_for(next, kilobytes);
    if (threadIdx.x < 32) c[0][threadIdx.x] = shift[tile * 32 + threadIdx.x];
    if (threadIdx.x < 32 && clean) c[1][threadIdx.x] = shift[to_clean + tile * 32 + threadIdx.x];
    const float* sums = product<KB, 4>(packed, xs, WIDTH / 32, tile, 0, [&] { root_mean_squares(squares, r); });
    for (int i = threadIdx.x; i < 8 * tokens; i += 256) {
        int token = i / 8, e = i % 8 * 2;
        const float* d = c[token < clean] + e;
        float x = r[token];
        float g0 = whole<KB>(sums, token, e) * x + d[0], g1 = whole<KB>(sums, token, e + 1) * x + d[1];
        float u0 = whole<KB>(sums, token, e + 16) * x + d[16], u1 = whole<KB>(sums, token, e + 17) * x + d[17];
        *(u32*)(hidden + fragment(token, tile * 16 + e)) = pack_bf16(gelu_tanh(g0) * u0, gelu_tanh(g1) * u1);
    }
#endif
}

extern "C" __global__ __launch_bounds__(256, 2) void expert_o(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    ask_for(next, kilobytes);
    residual<QWIDTH / 32 / WARPS / O_SHARES, O_SHARES>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
extern "C" __global__ __launch_bounds__(256, 2) void expert_down(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    ask_for(next, kilobytes);
    residual<MLP / 32 / WARPS / DOWN_SHARES, DOWN_SHARES>(packed, in, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}

// From the cache that all multiprocessors share: what the kernel before has written while this one was there already.
__device__ __forceinline__ uint4 fresh(const u16* p) { return __ldcg((const uint4*)p); }

// Attention of all heads' queries over one share of the keys. Block: 8 warps = 2 tiles of 16 query rows x 4 groups of
// 32 keys. grid: (rows / 32, keys / 128), rounded up. q is scaled. k [keys, dim], vt [dim, ld]; padding is finite.
// Cluster: all shares of the keys, at most 8; each block then finishes some of the rows. out: fragments [tokens, heads * dim].
extern "C" __global__ __launch_bounds__(256) void expert_attention(const u16* q, const u16* k, const u16* vt, u16* out_rows,
        const int* valid, int heads, int rows, int prefix, int keys, int ld, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    float* shared = (float*)::shared; // [4 groups][32 rows][dim + 4] numerators
    __shared__ float tops[4][32], sums[4][32], all_top[32], all_sum[32];
    const int dim = HEAD_DIM, pitch = dim + 4;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int tile = warp % 2, group = warp / 2;
    int row = blockIdx.x * 32 + tile * 16 + g;
    int key0 = blockIdx.y * 128 + group * 32;
    ask_for(next, kilobytes);
    {
        // The prefix's keys and values left the cache since the last step.
        int i = threadIdx.x;
        const u16* line = i < 128 ? k + (size_t)(blockIdx.y * 128 + i) * dim : vt + (size_t)(i - 128) * 2 * ld + blockIdx.y * 128;
        int step = i < 128 ? 64 : ld;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u16* at = i < 128 ? line + j * step : line + j / 2 * step + j % 2 * 64;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
        }
    }
    let_next_start();
    wait_for_previous();
    int end = *valid;
    // Logits: four tiles of 8 keys; column j of tile i is key (j / 2) * 8 + 2 i + j % 2, so that lane c ends up with keys 8 c .. 8 c + 7.
    float s[4][4] = {};
    const u16* q0 = q + (size_t)min(row, rows - 1) * dim + c * 8;
    const u16* q1 = q + (size_t)min(row + 8, rows - 1) * dim + c * 8;
    const u16* ks = k + (size_t)(key0 + g / 2 * 8 + g % 2) * dim + c * 8;
#pragma unroll
    for (int d = 0; d < dim / 32; d++) {
        uint4 f = fresh(q0 + d * 32), h = fresh(q1 + d * 32);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 t = fresh(ks + (size_t)2 * i * dim + d * 32);
            mma(s[i], f.x, h.x, f.y, h.y, t.x, t.y);
            mma(s[i], f.z, h.z, f.w, h.w, t.z, t.w);
        }
    }
    float top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int key = key0 + c * 8 + 2 * i + e % 2;
            bool counts = key < end || (key >= prefix && key < keys);
            if (!counts) s[i][e] = -1e30f;
            top[e / 2] = fmaxf(top[e / 2], s[i][e]);
        }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        top[e] = fmaxf(top[e], __shfl_xor_sync(FULL, top[e], 1));
        top[e] = fmaxf(top[e], __shfl_xor_sync(FULL, top[e], 2));
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[i][e] = s[i][e] > -1e29f ? __expf(s[i][e] - top[e / 2]) : 0.0f;
            sum[e / 2] += s[i][e];
        }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        sum[e] += __shfl_xor_sync(FULL, sum[e], 1);
        sum[e] += __shfl_xor_sync(FULL, sum[e], 2);
    }
    if (c == 0) {
        tops[group][tile * 16 + g] = top[0];
        tops[group][tile * 16 + g + 8] = top[1];
        sums[group][tile * 16 + g] = sum[0];
        sums[group][tile * 16 + g + 8] = sum[1];
    }
    u32 p[4][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        p[i][0] = pack_bf16(s[i][0], s[i][1]);
        p[i][1] = pack_bf16(s[i][2], s[i][3]);
    }
    float* out = shared + (size_t)(group * 32 + tile * 16) * pitch;
    const u16* vs = vt + (size_t)g * ld + key0 + c * 8;
#pragma unroll 8
    for (int n = 0; n < dim / 8; n++) {
        uint4 t = fresh(vs + (size_t)n * 8 * ld);
        float o[4] = {};
        mma(o, p[0][0], p[0][1], p[1][0], p[1][1], t.x, t.y);
        mma(o, p[2][0], p[2][1], p[3][0], p[3][1], t.z, t.w);
        *(float2*)(out + g * pitch + n * 8 + c * 2) = make_float2(o[0], o[1]);
        *(float2*)(out + (g + 8) * pitch + n * 8 + c * 2) = make_float2(o[2], o[3]);
    }
    __syncthreads();
    // The groups' numerators on one scale, in a fixed order, in place of the first group's: a warp takes 4 rows.
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int local = warp * 4 + r;
        float t = fmaxf(fmaxf(tops[0][local], tops[1][local]), fmaxf(tops[2][local], tops[3][local]));
        float w[4], all = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = __expf(tops[i][local] - t);
            all += w[i] * sums[i][local];
        }
        for (int e = lane; e < dim / 4; e += 32) {
            float4 o = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 y = *(float4*)(shared + (size_t)(i * 32 + local) * pitch + e * 4);
                o.x += w[i] * y.x; o.y += w[i] * y.y; o.z += w[i] * y.z; o.w += w[i] * y.w;
            }
            *(float4*)(shared + (size_t)local * pitch + e * 4) = o;
        }
        if (lane == 0) {
            all_top[local] = t;
            all_sum[local] = all;
        }
    }
    cluster_arrive();
    cluster_wait();
    // The shares on one scale: this block finishes rows blockIdx.y, blockIdx.y + shares, ...
    int shares = gridDim.y;
    for (int local = blockIdx.y + threadIdx.x / (dim / 4) * shares; local < 32; local += 256 / (dim / 4) * shares) {
        int e = threadIdx.x % (dim / 4) * 4, global = blockIdx.x * 32 + local;
        float t = -1e30f, all = 0.0f;
        for (int s = 0; s < shares; s++) t = fmaxf(t, load_of_rank(all_top + local, s));
        float4 o = {};
        for (int s = 0; s < shares; s++) {
            float w = __expf(load_of_rank(all_top + local, s) - t);
            float4 y = load4_of_rank(shared + (size_t)local * pitch + e, s);
            all += w * load_of_rank(all_sum + local, s);
            o.x += w * y.x; o.y += w * y.y; o.z += w * y.z; o.w += w * y.w;
        }
        float r = 1.0f / all;
        if (global < rows)
            *(uint2*)(out_rows + fragment(global / heads, global % heads * dim + e)) = make_uint2(pack_bf16(o.x * r, o.y * r), pack_bf16(o.z * r, o.w * r));
    }
    cluster_arrive();
    cluster_wait();
#endif
}

// The same on Hopper, with its matrix instructions: 64 rows and 64 keys per block. v [keys, dim]. scale: log2 e (q is
// scaled already). grid: (rows / 64 rounded up, shares), cluster: the shares, at most 16. block: 128.
#define TILE 8192 // bytes of 64 rows x 64 columns
extern "C" __global__ __launch_bounds__(128) void expert_attention_90(const u16* q, const u16* k, const u16* v, u16* out,
        const int* valid, int heads, int rows, int prefix, int keys, float scale, const char* next, int kilobytes) {
#if __CUDA_ARCH__ == 900
    __shared__ __align__(8) float statistics[80][2]; // [row / shares][share]: maximum, denominator
    __shared__ __align__(8) u64 together;
    u32 base = (local_address(shared) + 1023) / 1024 * 1024, qs = base, ks = qs + 4 * TILE, vs = ks + 4 * TILE;
    float* numerators = (float*)(shared + (base - local_address(shared))); // [row / shares][share][256], later
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int first = blockIdx.x * 64, shares = gridDim.y, rank = blockIdx.y, tiles = (keys + 63) / 64;
    // 64 rows of 256 as four tiles of 64 columns, 16-byte chunks swizzled within their 128-byte rows. What lies beyond
    // the rows that count is finite.
    u32 to_even = lane / 8 * TILE + warp * 128 + (lane % 8 ^ warp) * 16, to_odd = lane / 8 * TILE + (warp + 4) * 128 + (lane % 8 ^ warp + 4) * 16;
    auto fetch = [&](u32 to, const u16* from, int row) {
        const u16* source = from + (size_t)(row + warp) * 256 + lane * 8;
#pragma unroll
        for (int i = 0; i < 16; i++)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + (i % 2 ? to_odd : to_even) + i / 2 * 1024), "l"(source + i * 1024) : "memory");
    };
    ask_for(next, kilobytes);
    // The prefix's keys and values have long been there.
    int owned = (64 - rank + shares - 1) / shares;
    if (threadIdx.x == 0) expect(&together, owned * shares * (1024 + 8));
    __syncwarp();
    cluster_arrive_relaxed(); // all blocks have started
    bool early = (rank + 1) * 64 <= prefix;
    if (early) {
        fetch(ks, k, rank * 64);
        fetch(vs, v, rank * 64);
    }
    let_next_start();
    int end = *valid;
    wait_for_previous();
    fetch(qs, q, first);
    float o[128], top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
    for (int j = rank; j < tiles; j += shares) {
        if (j > rank || !early) {
            __syncthreads();
            fetch(ks, k, j * 64);
            fetch(vs, v, j * 64);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        fence_async();
        __syncthreads();
        float s[32];
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 at = i / 4 * TILE + i % 4 * 32;
            wgmma_64(s, operand(qs + at, 16, 1024), operand(ks + at, 16, 1024), i > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        float most[2] = {top[0], top[1]};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int key = j * 64 + i / 4 * 8 + c * 2 + i % 2;
            if (!(key < end || (key >= prefix && key < keys))) s[i] = -1e30f;
            most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            most[e] = fmaxf(most[e], __shfl_xor_sync(FULL, most[e], 1));
            most[e] = fmaxf(most[e], __shfl_xor_sync(FULL, most[e], 2));
            float shrink = exp2f((top[e] - most[e]) * scale);
            top[e] = most[e];
            sum[e] *= shrink;
            if (j > rank)
#pragma unroll
                for (int i = 0; i < 64; i++) o[i / 2 * 4 + e * 2 + i % 2] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < 32; i++) {
            s[i] = s[i] > -1e29f ? exp2f((s[i] - top[i / 2 % 2]) * scale) : 0.0f;
            sum[i / 2 % 2] += s[i];
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float* t = s + i * 8;
            wgmma_256_ra(o, pack_bf16(t[0], t[1]), pack_bf16(t[2], t[3]), pack_bf16(t[4], t[5]), pack_bf16(t[6], t[7]),
                         operand(vs + i * 2048, TILE, 1024), i > 0 || j > rank);
        }
        wgmma_commit();
        wgmma_wait<0>();
    }
    cluster_wait();
    cluster_arrive_relaxed(); // queries, keys and values have been read
    int row = warp * 16 + g;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        sum[e] += __shfl_xor_sync(FULL, sum[e], 1);
        sum[e] += __shfl_xor_sync(FULL, sum[e], 2);
    }
    cluster_wait();
    // Row `local` is finished by block local % shares.
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int local = row + 8 * e, owner = local % shares, slot = local / shares * shares + rank;
        u32 to = of_rank(numerators + slot * 256, owner), barrier = of_rank(&together, owner);
        if (c == 0) push2(of_rank(statistics[slot], owner), top[e], sum[e], barrier);
        // Neighbours swap halves, so that each pushes four columns in a row.
#pragma unroll
        for (int n = 0; n < 32; n += 2) {
            float a0 = o[n * 4 + e * 2], a1 = o[n * 4 + e * 2 + 1], b0 = o[n * 4 + 4 + e * 2], b1 = o[n * 4 + 5 + e * 2];
            float p0 = __shfl_xor_sync(FULL, c % 2 ? a0 : b0, 1), p1 = __shfl_xor_sync(FULL, c % 2 ? a1 : b1, 1);
            float4 y = c % 2 ? make_float4(p0, p1, b0, b1) : make_float4(a0, a1, p0, p1);
            push4(to + ((n + c % 2) * 8 + c / 2 * 4) * 4, y, barrier);
        }
    }
    wait_for_data(&together);
    // A warp a row, a lane 8 columns.
    for (int mine = warp; mine < owned; mine += 4) {
        int local = mine * shares + rank;
        float t = lane < shares ? statistics[mine * shares + lane][0] : -1e30f;
        float most = warp_max(t), w = lane < shares ? exp2f((t - most) * scale) : 0.0f;
        float all = warp_sum(lane < shares ? w * statistics[mine * shares + lane][1] : 0.0f);
        float4 x = {}, y = {};
        const float* from = numerators + mine * shares * 256 + lane * 4;
#pragma unroll 4
        for (int s = 0; s < shares; s++) {
            float4 a = *(const float4*)(from + s * 256), b = *(const float4*)(from + s * 256 + 128);
            float ws = __shfl_sync(FULL, w, s);
            x.x += ws * a.x; x.y += ws * a.y; x.z += ws * a.z; x.w += ws * a.w;
            y.x += ws * b.x; y.y += ws * b.y; y.z += ws * b.z; y.w += ws * b.w;
        }
        int global = first + local, token = global / heads, column = global % heads * 256 + lane * 4;
        float r = 1.0f / all;
        if (global < rows) {
            *(uint2*)(out + fragment(token, column)) = make_uint2(pack_bf16(x.x * r, x.y * r), pack_bf16(x.z * r, x.w * r));
            *(uint2*)(out + fragment(token, column + 128)) = make_uint2(pack_bf16(y.x * r, y.y * r), pack_bf16(y.z * r, y.w * r));
        }
    }
#endif
}
