// The action expert in bf16: at most 64 action tokens against weights that stream through once per step.
// One kernel per product, with what follows it in its epilogue; weights wait in registers before the kernel before
// has ended. NT: tokens / 8, rounded up, set when these are compiled.

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

// sum[32 rows][TOKENS] of this block's rows over k in [first, first + 32 * KB * WARPS) of x [TOKENS, k], in shared memory.
template <int KB> __device__ __forceinline__ float* product(const uint4* packed, const u16* x, int k, int tile, int first) {
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

// q, k, v of the action tokens, q and k rotated to their positions; q is scaled by 1/16 as well, exactly.
// Packed rows of a tile: 16 of a head's first half, then their partners of the second half. grid: (heads + 2) * dim / 32.
extern "C" __global__ __launch_bounds__(256) void expert_qkv(const uint4* packed, const u16* h, u16* q, u16* k, u16* vt,
        const float* cos, const float* sin, const int* valid, int heads, int first, int keys, int tokens, float scale) {
    const int dim = HEAD_DIM, half = dim / 2;
    float* sum = product<WIDTH / 32 / WARPS>(packed, h, WIDTH, blockIdx.x, 0);
    int head = blockIdx.x / (half / 16), j0 = blockIdx.x % (half / 16) * 16, start = *valid;
    for (int i = threadIdx.x; i < 16 * tokens; i += 256) {
        int token = i / 16, r = i % 16, j = j0 + r;
        float a = sum[token * 32 + r], b = sum[token * 32 + 16 + r];
        if (head <= heads) {
            float c = cos[(start + token) * half + j], s = sin[(start + token) * half + j];
            float x = a * c - b * s, y = b * c + a * s;
            if (head < heads) {
                u16* to = q + ((size_t)token * heads + head) * dim;
                to[j] = bf16_of(x * scale);
                to[half + j] = bf16_of(y * scale);
            } else {
                u16* to = k + (size_t)(first + token) * dim;
                to[j] = bf16_of(x);
                to[half + j] = bf16_of(y);
            }
        } else {
            vt[(size_t)j * keys + first + token] = bf16_of(a);
            vt[(size_t)(half + j) * keys + first + token] = bf16_of(b);
        }
    }
}

// hidden = GELU(gate) * up. Packed rows of a tile: 16 of gate, then the same 16 of up. grid: mlp / 16.
extern "C" __global__ __launch_bounds__(256, 2) void expert_gate_up(const uint4* packed, const u16* h, u16* hidden, int tokens) {
    float* sum = product<WIDTH / 32 / WARPS>(packed, h, WIDTH, blockIdx.x, 0);
    for (int i = threadIdx.x; i < 8 * tokens; i += 256) {
        int token = i / 8, r = i % 8 * 2;
        float* s = sum + token * 32 + r;
        *(u32*)(hidden + (size_t)token * MLP + blockIdx.x * 16 + r) = pack_bf16(gelu_tanh(s[0]) * s[16], gelu_tanh(s[1]) * s[17]);
    }
}

// One share of the output product of attention, or of the MLP: parts[share][token][WIDTH].
// grid: (WIDTH / 32, shares); every share takes 32 * KB * WARPS of k.
template <int KB> __device__ __forceinline__ void share(const uint4* packed, const u16* x, float* parts, int k, int tokens) {
    float* sum = product<KB>(packed, x, k, blockIdx.x, blockIdx.y * 32 * KB * WARPS);
    float* to = parts + (size_t)blockIdx.y * TOKENS * WIDTH + blockIdx.x * 32;
    for (int i = threadIdx.x; i < 32 * tokens; i += 256) to[(size_t)(i / 32) * WIDTH + i % 32] = sum[i];
}
extern "C" __global__ __launch_bounds__(256) void expert_o(const uint4* packed, const u16* x, float* parts, int tokens) {
    share<QWIDTH / 32 / WARPS / O_SHARES>(packed, x, parts, QWIDTH, tokens);
}
extern "C" __global__ __launch_bounds__(256, 2) void expert_down(const uint4* packed, const u16* x, float* parts, int tokens) {
    share<MLP / 32 / WARPS / DOWN_SHARES>(packed, x, parts, MLP, tokens);
}

// x += gate * sum of parts; h = x / rms(x) * scale + shift. grid: tokens, block: WIDTH / 4. shares = 0: only the norm.
// The first `clean` rows' modulation is `to_clean` floats further on.
extern "C" __global__ void expert_norm(float* x, const float* parts, int shares, const float* gate, const float* scale,
                                       const float* shift, int clean, int to_clean, u16* h) {
    int i = threadIdx.x;
    size_t at = (size_t)blockIdx.x * WIDTH / 4 + i;
    if ((int)blockIdx.x < clean) {
        gate += to_clean;
        scale += to_clean;
        shift += to_clean;
    }
    float4 s = ((const float4*)scale)[i], t = ((const float4*)shift)[i], g = {};
    if (shares) g = ((const float4*)gate)[i];
    wait_for_previous();
    float4 v = ((float4*)x)[at];
    if (shares) {
        float4 sum = {};
        for (int p = 0; p < shares; p++) {
            float4 y = ((const float4*)parts)[(size_t)p * TOKENS * WIDTH / 4 + at];
            sum.x += y.x; sum.y += y.y; sum.z += y.z; sum.w += y.w;
        }
        v.x += g.x * sum.x; v.y += g.y * sum.y; v.z += g.z * sum.z; v.w += g.w * sum.w;
        ((float4*)x)[at] = v;
    }
    float r = rsqrtf(block_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w) / WIDTH + 1e-6f);
    let_next_start();
    uint2 o = {pack_bf16(v.x * r * s.x + t.x, v.y * r * s.y + t.y), pack_bf16(v.z * r * s.z + t.z, v.w * r * s.w + t.w)};
    ((uint2*)h)[at] = o;
}

// Attention of all heads' queries over one share of the keys. Block: 8 warps = 2 tiles of 16 query rows x 4 groups of
// 32 keys. grid: (rows / 32, keys / 128), rounded up. q is scaled. k [keys, dim], vt [dim, ld]; padding is finite.
// parts [shares][rows][dim]: numerators; stats [shares][rows]: (maximum, denominator).
extern "C" __global__ __launch_bounds__(256) void expert_attention(const u16* q, const u16* k, const u16* vt, float* parts,
        float2* stats, const int* valid, int rows, int prefix, int keys, int ld) {
    // shared: [4 groups][32 rows][dim + 4] numerators
    __shared__ float tops[4][32], sums[4][32];
    const int dim = HEAD_DIM, pitch = dim + 4;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int tile = warp % 2, group = warp / 2;
    int row = blockIdx.x * 32 + tile * 16 + g;
    int key0 = blockIdx.y * 128 + group * 32;
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
    // The groups' numerators on one scale, in a fixed order: a warp takes 4 rows.
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int local = warp * 4 + r, global = blockIdx.x * 32 + local;
        if (global >= rows) break;
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
            ((float4*)parts)[((size_t)blockIdx.y * rows + global) * (dim / 4) + e] = o;
        }
        if (lane == 0) stats[(size_t)blockIdx.y * rows + global] = make_float2(t, all);
    }
}

// The shares of the keys together: out [rows, dim]. grid: rows / 4 rounded up, block: 4 * dim / 4.
extern "C" __global__ void expert_combine(const float* parts, const float2* stats, u16* out, int rows, int shares) {
    const int dim = HEAD_DIM;
    int row = blockIdx.x * 4 + threadIdx.x / (dim / 4), e = threadIdx.x % (dim / 4);
    wait_for_previous();
    let_next_start();
    if (row >= rows) return;
    float top = -1e30f, all = 0.0f;
    for (int p = 0; p < shares; p++) top = fmaxf(top, stats[(size_t)p * rows + row].x);
    float4 o = {};
    for (int p = 0; p < shares; p++) {
        float2 s = stats[(size_t)p * rows + row];
        float w = __expf(s.x - top);
        float4 y = ((const float4*)parts)[((size_t)p * rows + row) * (dim / 4) + e];
        o.x += w * y.x; o.y += w * y.y; o.z += w * y.z; o.w += w * y.w;
        all += w * s.y;
    }
    float r = 1.0f / all;
    ((uint2*)out)[(size_t)row * (dim / 4) + e] = make_uint2(pack_bf16(o.x * r, o.y * r), pack_bf16(o.z * r, o.w * r));
}
