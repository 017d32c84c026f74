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

extern __shared__ float shared[];

__device__ __forceinline__ void mma(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 stream16(const uint4* p) {
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
}

// Packs W [rows, k] row-major: unit (16 rows, 32 k) by unit along k, in it lane by lane rows g and g + 8 (g = lane / 4),
// k = 8 (lane % 4) + 0..7 of each. `order` gives the source row of each packed row. grid: rows / 16, block: any.
extern "C" __global__ void pack_weights(const uint4* w, uint4* packed, const int* order, int k) {
    int units = k / 32;
    for (int e = threadIdx.x; e < units * 64; e += blockDim.x) {
        int unit = e / 64, which = e % 64 / 32, lane = e % 32;
        int row = order[blockIdx.x * 16 + lane / 4 + 8 * which];
        packed[((size_t)blockIdx.x * units + unit) * 64 + which * 32 + lane] = w[((size_t)row * k + unit * 32 + lane % 4 * 8) / 8];
    }
}

// sum[TOKENS][32 rows] of this block's rows over k in [first, first + 32 * KB * WARPS) of x [TOKENS, k], in shared
// memory. `meanwhile` is done as soon as the kernel before has ended.
template <int KB, class F>
__device__ __forceinline__ float* product(const uint4* packed, const u16* x, int k, int tile, int first, F meanwhile) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, units = k / 32;
    int unit = first / 32 + warp * KB;
    const uint4* from = packed + ((size_t)tile * MT * units + unit) * 64 + lane;
    uint4 a[KB][MT][2];
#pragma unroll
    for (int b = 0; b < KB; b++)
#pragma unroll
        for (int m = 0; m < MT; m++) {
            a[b][m][0] = stream16(from + ((size_t)m * units + b) * 64);
            a[b][m][1] = stream16(from + ((size_t)m * units + b) * 64 + 32);
        }
    wait_for_previous();
    meanwhile();
    float acc[MT][NT][4] = {};
    const u16* xs = x + (size_t)(lane / 4) * k + unit * 32 + lane % 4 * 8;
#pragma unroll
    for (int b = 0; b < KB; b++) {
        uint4 t[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) t[n] = *(const uint4*)(xs + (size_t)n * 8 * k + b * 32);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint4 f = a[b][m][0], g = a[b][m][1];
                mma(acc[m][n], f.x, g.x, f.y, g.y, t[n].x, t[n].y);
                mma(acc[m][n], f.z, g.z, f.w, g.w, t[n].z, t[n].w);
            }
    }
    let_next_start();
    // Each warp's share, then their sum in the order of the warps.
    float* mine = shared + warp * (MT * 16 * TOKENS);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = m * 16 + lane / 4 + 8 * (e / 2), token = n * 8 + lane % 4 * 2 + e % 2;
                mine[token * (MT * 16) + row] = acc[m][n][e];
            }
    __syncthreads();
    for (int i = threadIdx.x; i < MT * 16 * TOKENS; i += WARPS * 32) {
        float sum = shared[i];
#pragma unroll
        for (int w = 1; w < WARPS; w++) sum += shared[w * (MT * 16 * TOKENS) + i];
        shared[i] = sum;
    }
    __syncthreads();
    return shared; // [token][32 rows]
}

// Weights that a later kernel reads, on their way into the cache; each block asks for its part.
__device__ __forceinline__ void ask_for(const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    int blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
    int each = (kilobytes + blocks - 1) / blocks, first = block * each, count = min(each, kilobytes - first);
    if (threadIdx.x == 0 && count > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(next + (size_t)first * 1024), "r"(count * 1024) : "memory");
#endif
}

// r[token] = 1 / rms(x), from the sums of squares of each 32 columns.
__device__ __forceinline__ void root_mean_squares(const float* squares, float* r) {
    int token = threadIdx.x / 4;
    float sum = 0.0f;
    if (token < TOKENS)
#pragma unroll
        for (int i = 0; i < WIDTH / 128; i++) sum += squares[(threadIdx.x % 4 + 4 * i) * TOKENS + token];
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    if (token < TOKENS && threadIdx.x % 4 == 0) r[token] = rsqrtf(sum / WIDTH + 1e-6f);
}

// xs and squares of x as the chunk comes in. grid: tokens, block: WIDTH / 4. The first `clean` rows' scale is
// `to_clean` floats further on.
extern "C" __global__ void expert_start(const float* x, const float* scale, int clean, int to_clean, u16* xs, float* squares) {
    int i = threadIdx.x;
    float4 s = ((const float4*)(scale + ((int)blockIdx.x < clean ? to_clean : 0)))[i];
    wait_for_previous();
    float4 v = ((const float4*)x)[(size_t)blockIdx.x * WIDTH / 4 + i];
    let_next_start();
    ((uint2*)xs)[(size_t)blockIdx.x * WIDTH / 4 + i] = make_uint2(pack_bf16(v.x * s.x, v.y * s.y), pack_bf16(v.z * s.z, v.w * s.w));
    float sum = v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
#pragma unroll
    for (int d = 4; d > 0; d >>= 1) sum += __shfl_xor_sync(FULL, sum, d);
    if (i % 8 == 0) squares[i / 8 * TOKENS + blockIdx.x] = sum;
}

// W shift of `count` times: out [.., pitch], packed rows in order. x [TOKENS, WIDTH]. grid: rows / 32.
extern "C" __global__ __launch_bounds__(256) void expert_shift(const uint4* packed, const u16* x, float* out, int count, int pitch) {
    float* sum = product<WIDTH / 32 / WARPS>(packed, x, WIDTH, blockIdx.x, 0, [] {});
    for (int i = threadIdx.x; i < 32 * count; i += 256) out[(size_t)(i / 32) * pitch + blockIdx.x * 32 + i % 32] = sum[i];
}

// q, k, v of the action tokens, q and k rotated to their positions; q is scaled by 1/16 as well, exactly.
// Packed rows of a tile: 16 of a head's first half, then their partners of the second half. grid: (heads + 2) * dim / 32.
extern "C" __global__ __launch_bounds__(256, 2) void expert_qkv(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* q, u16* k, u16* vt, const float* cos, const float* sin,
        const int* valid, int heads, int first, int keys, int tokens, float scale, const char* next, int kilobytes) {
    __shared__ float r[TOKENS];
    const int dim = HEAD_DIM, half = dim / 2;
    ask_for(next, kilobytes);
    float* sum = product<WIDTH / 32 / WARPS>(packed, xs, WIDTH, blockIdx.x, 0, [&] { root_mean_squares(squares, r); });
    int head = blockIdx.x / (half / 16), j0 = blockIdx.x % (half / 16) * 16, start = *valid;
    for (int i = threadIdx.x; i < 16 * tokens; i += 256) {
        int token = i / 16, e = i % 16, j = j0 + e;
        const float* c = shift + (token < clean ? to_clean : 0) + blockIdx.x * 32 + e;
        float a = sum[token * 32 + e] * r[token] + c[0], b = sum[token * 32 + 16 + e] * r[token] + c[16];
        if (head <= heads) {
            float x = cos[(start + token) * half + j], y = sin[(start + token) * half + j];
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
            vt[(size_t)j * keys + first + token] = bf16_of(a);
            vt[(size_t)(half + j) * keys + first + token] = bf16_of(b);
        }
    }
}

// hidden = GELU(gate) * up. Packed rows of a tile: 16 of gate, then the same 16 of up. grid: mlp / 16.
extern "C" __global__ __launch_bounds__(256, 2) void expert_gate_up(const uint4* packed, const u16* xs, const float* squares,
        const float* shift, int clean, int to_clean, u16* hidden, int tokens, const char* next, int kilobytes) {
    __shared__ float r[TOKENS];
    ask_for(next, kilobytes);
    float* sum = product<WIDTH / 32 / WARPS>(packed, xs, WIDTH, blockIdx.x, 0, [&] { root_mean_squares(squares, r); });
    for (int i = threadIdx.x; i < 8 * tokens; i += 256) {
        int token = i / 8, e = i % 8 * 2;
        const float* c = shift + (token < clean ? to_clean : 0) + blockIdx.x * 32 + e;
        const float* s = sum + token * 32 + e;
        float x = r[token], g0 = s[0] * x + c[0], g1 = s[1] * x + c[1], u0 = s[16] * x + c[16], u1 = s[17] * x + c[17];
        *(u32*)(hidden + (size_t)token * MLP + blockIdx.x * 16 + e) = pack_bf16(gelu_tanh(g0) * u0, gelu_tanh(g1) * u1);
    }
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ u32 of_rank(const void* mine, int rank) {
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((u32)__cvta_generic_to_shared(mine)), "r"(rank));
    return at;
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

// x += gate * (W in); xs and squares for the next norm. Cluster: SHARES blocks in y, each with a share of k; each then
// finishes every SHARES-th token. grid: (WIDTH / 32, SHARES).
template <int KB, int SHARES>
__device__ __forceinline__ void residual(const uint4* packed, const u16* in, int k, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens) {
    const int MOST = (TOKENS / SHARES + WARPS) / WARPS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.y, column = blockIdx.x * 32 + lane;
    float old[MOST];
    float* sum = product<KB>(packed, in, k, blockIdx.x, rank * 32 * KB * WARPS, [&] {
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int token = (warp + i * WARPS) * SHARES + rank;
            old[i] = token < tokens ? x[(size_t)token * WIDTH + column] : 0.0f;
        }
    });
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int token = (warp + i * WARPS) * SHARES + rank;
        if (token < tokens) {
            float y = 0.0f;
#pragma unroll
            for (int s = 0; s < SHARES; s++) y += load_of_rank(sum + token * 32 + lane, s);
            int far = token < clean ? to_clean : 0;
            float v = old[i] + gate[far + column] * y;
            x[(size_t)token * WIDTH + column] = v;
            xs[(size_t)token * WIDTH + column] = bf16_of(v * scale[far + column]);
            float square = warp_sum(v * v);
            if (lane == 0) squares[blockIdx.x * TOKENS + token] = square;
        }
    }
    cluster_arrive(); // nobody leaves while others read
    cluster_wait();
}
#endif
extern "C" __global__ __launch_bounds__(256, 2) void expert_o(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    ask_for(next, kilobytes);
    residual<QWIDTH / 32 / WARPS / O_SHARES, O_SHARES>(packed, in, QWIDTH, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}
extern "C" __global__ __launch_bounds__(256, 2) void expert_down(const uint4* packed, const u16* in, float* x, const float* gate,
        const float* scale, int clean, int to_clean, u16* xs, float* squares, int tokens, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    ask_for(next, kilobytes);
    residual<MLP / 32 / WARPS / DOWN_SHARES, DOWN_SHARES>(packed, in, MLP, x, gate, scale, clean, to_clean, xs, squares, tokens);
#endif
}

// Attention of all heads' queries over one share of the keys. Block: 8 warps = 2 tiles of 16 query rows x 4 groups of
// 32 keys. grid: (rows / 32, keys / 128), rounded up. q is scaled. k [keys, dim], vt [dim, ld]; padding is finite.
// Cluster: all shares of the keys, at most 8; each block then finishes some of the rows. out [rows, dim].
extern "C" __global__ __launch_bounds__(256) void expert_attention(const u16* q, const u16* k, const u16* vt, u16* out_rows,
        const int* valid, int rows, int prefix, int keys, int ld, const char* next, int kilobytes) {
#if __CUDA_ARCH__ >= 900
    // shared: [4 groups][32 rows][dim + 4] numerators
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
    wait_for_previous();
    int end = *valid;
    // Logits: four tiles of 8 keys; column j of tile i is key (j / 2) * 8 + 2 i + j % 2, so that lane c ends up with keys 8 c .. 8 c + 7.
    float s[4][4] = {};
    const u16* q0 = q + (size_t)min(row, rows - 1) * dim + c * 8;
    const u16* q1 = q + (size_t)min(row + 8, rows - 1) * dim + c * 8;
    const u16* ks = k + (size_t)(key0 + g / 2 * 8 + g % 2) * dim + c * 8;
#pragma unroll
    for (int d = 0; d < dim / 32; d++) {
        uint4 f = *(const uint4*)(q0 + d * 32), h = *(const uint4*)(q1 + d * 32);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 t = *(const uint4*)(ks + (size_t)2 * i * dim + d * 32);
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
        uint4 t = *(const uint4*)(vs + (size_t)n * 8 * ld);
        float o[4] = {};
        mma(o, p[0][0], p[0][1], p[1][0], p[1][1], t.x, t.y);
        mma(o, p[2][0], p[2][1], p[3][0], p[3][1], t.z, t.w);
        *(float2*)(out + g * pitch + n * 8 + c * 2) = make_float2(o[0], o[1]);
        *(float2*)(out + (g + 8) * pitch + n * 8 + c * 2) = make_float2(o[2], o[3]);
    }
    let_next_start();
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
            *(uint2*)(out_rows + (size_t)global * dim + e) = make_uint2(pack_bf16(o.x * r, o.y * r), pack_bf16(o.z * r, o.w * r));
    }
    cluster_arrive();
    cluster_wait();
#endif
}
