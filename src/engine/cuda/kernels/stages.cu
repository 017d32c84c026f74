// What surrounds the matrix products in all three stages. Rows are tokens; x is the residual stream, always f32.

// Images to patch rows: bytes stay bytes (exact in bf16), the product's scale and the position table do the rest:
// W (p / 127.5 - 1) + b = W p / 127.5 + (b - sum W); pixels in [-1, 1] are brought to the scale of bytes. Images lie in the
// host's memory: a block has one row of pixels, which comes once and in whole lines, beside all others.
// grid: (rows of pixels that patches have, images), block: any; shared: a row of pixels. ld >= 3 patch^2.
__device__ __forceinline__ float scaled_pixel(u8 p) { return (float)p; }
__device__ __forceinline__ float scaled_pixel(float p) { return (p + 1.0f) * 127.5f; }
template <class P> __device__ __forceinline__ void to_patches(const P* images, T* rows, int side, int patch, int ld) {
    extern __shared__ uint4 pixels[];
    P* line = (P*)pixels;
    int across = side / patch, len = 3 * patch * patch, width = 3 * side, i = blockIdx.x % patch;
    const P* from = images + ((size_t)blockIdx.y * side + blockIdx.x) * width;
    T* to = rows + (size_t)(blockIdx.y * across + blockIdx.x / patch) * across * ld; // of the first patch
    if (width * sizeof(P) % 16 == 0) {
        for (int e = threadIdx.x; e < width * (int)sizeof(P) / 16; e += blockDim.x) pixels[e] = ((const uint4*)from)[e];
    } else {
        for (int e = threadIdx.x; e < width; e += blockDim.x) line[e] = from[e];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < across * 3 * patch; e += blockDim.x) {
        int j = e % patch, c = e / patch % 3, at = e / (3 * patch);
        to[(size_t)at * ld + c * patch * patch + i * patch + j] = store(scaled_pixel(line[(at * patch + j) * 3 + c]));
    }
    if (i == 0)
        for (int e = threadIdx.x; e < across * (ld - len); e += blockDim.x) to[(size_t)(e / (ld - len)) * ld + len + e % (ld - len)] = store(0.0f);
}
extern "C" __global__ void patches_u8(const u8* images, T* rows, int side, int patch, int ld) { to_patches(images, rows, side, patch, ld); }
extern "C" __global__ void patches_f32(const float* images, T* rows, int side, int patch, int ld) { to_patches(images, rows, side, patch, ld); }

// Norms: a warp per row, widths are multiples of 4. grid: rows / 4 rounded up, block: 128.
__device__ __forceinline__ void store4(T* to, float a, float b, float c, float d) {
#ifdef BF16
    *(uint2*)to = make_uint2(pack_bf16(a, b), pack_bf16(c, d));
#else
    *(float4*)to = make_float4(a, b, c, d);
#endif
}
// LayerNorm, eps 1e-6.
extern "C" __global__ void layer_norm(const float* x, const float* weight, const float* bias, T* out, int width, int rows) {
    int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP, quads = width / 4;
    wait_for_previous();
    let_next_start();
    if (row >= rows) return;
    const float4* from = (const float4*)(x + (size_t)row * width);
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < quads; i += WARP) {
        float4 v = from[i];
        sum += (v.x + v.y) + (v.z + v.w);
    }
    float mean = warp_sum(sum) / width;
#pragma unroll 8
    for (int i = lane; i < quads; i += WARP) {
        float4 v = from[i];
        v.x -= mean; v.y -= mean; v.z -= mean; v.w -= mean;
        squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    }
    float r = rsqrtf(warp_sum(squares) / width + 1e-6f);
#pragma unroll 8
    for (int i = lane; i < quads; i += WARP) {
        float4 v = from[i], w = ((const float4*)weight)[i], b = ((const float4*)bias)[i];
        store4(out + (size_t)row * width + i * 4, (v.x - mean) * r * w.x + b.x, (v.y - mean) * r * w.y + b.y,
               (v.z - mean) * r * w.z + b.z, (v.w - mean) * r * w.w + b.w);
    }
}
#ifdef BF16
// The same norms for widths up to 2048: a block per row, which is read once; grid: rows, block: 128. What does not
// depend on the kernel before is fetched before it has ended. If y is not null, x += y (+ plus) comes first. inverse: if not
// 0, the result is e4m3, multiplied by this.
#define ROW_QUADS 4
__device__ __forceinline__ void store_row(void* out, size_t at, float a, float b, float c, float d, float inverse) {
    if (inverse == 0.0f) {
        *(uint2*)((u16*)out + at) = make_uint2(pack_bf16(a, b), pack_bf16(c, d));
    } else {
#if __CUDA_ARCH__ >= 890
        u16 lo, hi;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(b * inverse), "f"(a * inverse));
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(d * inverse), "f"(c * inverse));
        *(u32*)((u8*)out + at) = lo | (u32)hi << 16;
#endif
    }
}
__device__ __forceinline__ float4 row_quad(float* x, const u16* y, const float* plus, int i) {
    float4 v = ((const float4*)x)[i];
    if (y) {
        uint2 more = ((const uint2*)y)[i];
        v.x += of_bf16(more.x & 0xffff); v.y += of_bf16(more.x >> 16); v.z += of_bf16(more.y & 0xffff); v.w += of_bf16(more.y >> 16);
        if (plus) {
            float4 p = ((const float4*)plus)[i];
            v.x += p.x; v.y += p.y; v.z += p.z; v.w += p.w;
        }
        ((float4*)x)[i] = v;
    }
    return v;
}
__device__ __forceinline__ float row_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}
extern "C" __global__ __launch_bounds__(128) void layer_norm_row(float* x, const u16* y, const float* plus, const float* weight, const float* bias, void* out, int width, float inverse) {
    __shared__ float parts[8];
    int quads = width / 4;
    size_t at = (size_t)blockIdx.x * width;
    float4 v[ROW_QUADS], w[ROW_QUADS], b[ROW_QUADS];
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        if (i < quads) w[j] = ((const float4*)weight)[i], b[j] = ((const float4*)bias)[i];
    }
    wait_for_previous();
    let_next_start();
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        v[j] = i < quads ? row_quad(x + at, y ? y + at : y, plus, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) sum += (v[j].x + v[j].y) + (v[j].z + v[j].w);
    float mean = row_sum(sum, parts) / width;
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        if (threadIdx.x + j * 128 >= quads) continue;
        v[j].x -= mean; v[j].y -= mean; v[j].z -= mean; v[j].w -= mean;
        squares += (v[j].x * v[j].x + v[j].y * v[j].y) + (v[j].z * v[j].z + v[j].w * v[j].w);
    }
    float r = rsqrtf(row_sum(squares, parts + 4) / width + 1e-6f);
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        if (i < quads)
            store_row(out, at + i * 4, v[j].x * r * w[j].x + b[j].x, v[j].y * r * w[j].y + b[j].y, v[j].z * r * w[j].z + b[j].z,
                      v[j].w * r * w[j].w + b[j].w, inverse);
    }
}
// What a product that adds to the residual stream leaves for a LayerNorm (kernels/products.cu), where no such product came
// before: x times the norm's weights, and sums and sums of squares of 64 columns each, [width / 64][rows]. Width: a
// multiple of 64. grid: rows, block: 128.
extern "C" __global__ __launch_bounds__(128) void norm_begins(const float* x, const float* weights, u16* scaled, float2* sums, int width) {
    int row = blockIdx.x;
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < (width / 4 + 15) / 16 * 16; i += 128) {
        bool is_in = i < width / 4;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f), w = v;
        if (is_in) v = ((const float4*)(x + (size_t)row * width))[i], w = ((const float4*)weights)[i];
        if (is_in) store4(scaled + (size_t)row * width + i * 4, v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
        float sum = (v.x + v.y) + (v.z + v.w), squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
        u32 half = 0xffffu << threadIdx.x % WARP / 16 * 16;
#pragma unroll
        for (int d = 8; d > 0; d >>= 1) {
            sum += __shfl_xor_sync(half, sum, d);
            squares += __shfl_xor_sync(half, squares, d);
        }
        if (is_in && i % 16 == 0) sums[(size_t)(i / 16) * gridDim.x + row] = make_float2(sum, squares);
    }
}
// A norm's part of a product's constants: of_means = W weights, shifted = bias + W shift. grid: rows of W, block: 128.
extern "C" __global__ __launch_bounds__(128) void fold_norm(const T* w, const T* bias, const float* weights, const float* shift,
                                                            float* of_means, float* shifted, int k) {
    float means = 0.0f, shifts = 0.0f;
    for (int i = threadIdx.x; i < k; i += 128) {
        float value = load(w[(size_t)blockIdx.x * k + i]);
        means += value * weights[i];
        shifts += value * shift[i];
    }
    means = block_sum(means);
    shifts = block_sum(shifts);
    if (threadIdx.x == 0) of_means[blockIdx.x] = means, shifted[blockIdx.x] = load(bias[blockIdx.x]) + shifts;
}
extern "C" __global__ __launch_bounds__(128) void rms_norm_row(float* x, const u16* y, const float* plus, const float* scale, void* out, int width, float inverse) {
    __shared__ float parts[4];
    int quads = width / 4;
    size_t at = (size_t)blockIdx.x * width;
    float4 v[ROW_QUADS], w[ROW_QUADS];
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        if (i < quads) w[j] = ((const float4*)scale)[i];
    }
    wait_for_previous();
    let_next_start();
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        v[j] = i < quads ? row_quad(x + at, y ? y + at : y, plus, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) squares += (v[j].x * v[j].x + v[j].y * v[j].y) + (v[j].z * v[j].z + v[j].w * v[j].w);
    float r = rsqrtf(row_sum(squares, parts) / width + 1e-6f);
#pragma unroll
    for (int j = 0; j < ROW_QUADS; j++) {
        int i = threadIdx.x + j * 128;
        if (i < quads) store_row(out, at + i * 4, v[j].x * r * w[j].x, v[j].y * r * w[j].y, v[j].z * r * w[j].z, v[j].w * r * w[j].w, inverse);
    }
}
// y (+ bias) [rows, width], GELU if so said, to bf16 (y itself, if so said), or e4m3 times `inverse` if that is not 0. width: a multiple of 4.
// grid: rows, block: any.
extern "C" __global__ void finish(const u16* y, const float* bias, void* out, int width, int has_gelu, float inverse) {
    wait_for_previous();
    let_next_start();
    size_t at = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        float v[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            v[e] = of_bf16(y[at + i + e]) + (bias ? bias[i + e] : 0.0f);
            if (has_gelu) v[e] = gelu_tanh(v[e]);
        }
        store_row(out, at + i, v[0], v[1], v[2], v[3], inverse);
    }
}
// w [rows, k] to e4m3 with a scale per row; multipliers: these times `scale`. means [2, k]: of what it is multiplied with,
// before and after rounding; bias += w means[0] - rounded w means[1]. grid: rows, block: 128. k: a multiple of 4.
extern "C" __global__ __launch_bounds__(128) void quantise_rows(const u16* w, void* out, float* multipliers, const float* means, float* bias, int k, float scale) {
#if __CUDA_ARCH__ >= 890
    const u16* row = w + (size_t)blockIdx.x * k;
    float most = 1e-30f;
    for (int i = threadIdx.x; i < k; i += 128) most = fmaxf(most, fabsf(of_bf16(row[i])));
    __shared__ float parts[4];
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = most;
    __syncthreads();
    most = fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3]));
    float inverse = 448.0f / most, step = most / 448.0f, lost = 0.0f;
    for (int i = threadIdx.x * 2; i < k; i += 256) {
        float a = of_bf16(row[i]), b = of_bf16(row[i + 1]);
        u16 both;
        u32 halves;
        float c, d;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(b * inverse), "f"(a * inverse));
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(both));
        asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %2;\ncvt.f32.f16 %0, lo;\ncvt.f32.f16 %1, hi;\n}" : "=f"(c), "=f"(d) : "r"(halves));
        *(u16*)((u8*)out + (size_t)blockIdx.x * k + i) = both;
        lost += (a * means[i] - c * step * means[k + i]) + (b * means[i + 1] - d * step * means[k + i + 1]);
    }
    lost = block_sum(lost);
    if (threadIdx.x == 0) {
        multipliers[blockIdx.x] = step * scale;
        bias[blockIdx.x] += lost;
    }
#endif
}
#endif
// RMSNorm with multipliers `scale` (1 + w, or adaRMS's 1 + scale) and, if not null, `shift`; the first `clean` rows take
// theirs `to_clean` floats further on.
extern "C" __global__ void rms_norm(const float* x, const float* scale, const float* shift, int clean, int to_clean,
                                    T* out, int width, int rows) {
    int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP, quads = width / 4;
    wait_for_previous();
    let_next_start();
    if (row >= rows) return;
    if (row < clean) {
        scale += to_clean;
        shift += to_clean;
    }
    const float4* from = (const float4*)(x + (size_t)row * width);
    float squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < quads; i += WARP) {
        float4 v = from[i];
        squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    }
    float r = rsqrtf(warp_sum(squares) / width + 1e-6f);
#pragma unroll 8
    for (int i = lane; i < quads; i += WARP) {
        float4 v = from[i], s = ((const float4*)scale)[i], t = {};
        if (shift) t = ((const float4*)shift)[i];
        store4(out + (size_t)row * width + i * 4, v.x * r * s.x + t.x, v.y * r * s.y + t.y, v.z * r * s.z + t.z, v.w * r * s.w + t.w);
    }
}

// x += gate * y, both [rows, width]; the first `clean` rows' gate is `to_clean` floats further on. grid-stride.
extern "C" __global__ void add_gated(float* x, const float* gate, const float* y, int clean, int to_clean, int width, int count) {
    wait_for_previous();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        x[i] += gate[i % width + (i / width < clean ? to_clean : 0)] * y[i];
    let_next_start();
}

// x += scale * y; grid-stride.
extern "C" __global__ void add_scaled(float* x, const float* y, float scale, int count) {
    wait_for_previous();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) x[i] += scale * y[i];
    let_next_start();
}

// x *= y; grid-stride.
extern "C" __global__ void multiply(float* x, const float* y, int count) {
    wait_for_previous();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) x[i] *= y[i];
    let_next_start();
}

// The residual stream of the prefix: grid: image rows, then prompt slots. request: valid rows, which features, tokens.
// features [2][slot_rows][width]; a prompt token's row is E[token] * sqrt(width).
extern "C" __global__ void prefix_start(const int* request, const float* features, const T* table, float* x,
                                        int image_rows, int slot_rows, int width, float scale) {
    wait_for_previous();
    int row = blockIdx.x;
    float* to = x + (size_t)row * width;
    if (row < image_rows) {
        const float* from = features + ((size_t)request[1] * slot_rows + row) * width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
    } else {
        const T* from = table + (size_t)request[2 + row - image_rows] * width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = load(from[i]) * scale;
    }
    let_next_start();
}

// grid: tokens. qkv [tokens, (heads + 2) * dim] to q [tokens, heads * dim] and k after RoPE and v, written to rows
// `first + token` of the cache: k [.., dim], v [.., dim], and v transposed [dim, keys] if vt is not null.
// Token i stands at position `*valid * at_valid + i`. cos, sin: [positions, dim / 2].
extern "C" __global__ void split_rope(const T* qkv, T* q, T* k, T* v, T* vt, const float* cos, const float* sin,
                                      const int* valid, int at_valid, int heads, int dim, int first, int keys) {
    wait_for_previous();
    int token = blockIdx.x, half = dim / 2, row = first + token;
    int position = token + (at_valid ? *valid : 0);
    const T* from = qkv + (size_t)token * (heads + 2) * dim;
    for (int e = threadIdx.x; e < (heads + 1) * half; e += blockDim.x) {
        int head = e / half, j = e % half;
        float c = cos[position * half + j], s = sin[position * half + j];
        float a = load(from[head * dim + j]), b = load(from[head * dim + half + j]);
        T* to = head < heads ? q + ((size_t)token * heads + head) * dim : k + (size_t)row * dim;
        to[j] = store(a * c - b * s);
        to[half + j] = store(b * c + a * s);
    }
    for (int e = threadIdx.x; e < dim; e += blockDim.x) {
        T value = from[(heads + 1) * dim + e];
        v[(size_t)row * dim + e] = value;
        if (vt) vt[(size_t)e * keys + row] = value;
    }
    let_next_start();
}

#ifdef BF16
// The same, eight at a time, of prompt and images; heads of a multiple of 16. is_packed: columns of heads' halves come in
// turns of eight (order.rs). block: (heads + 1) * dim / 16 + dim / 8.
extern "C" __global__ void split_rope_8(const u16* qkv, u16* q, u16* k, u16* v, const float* cos, const float* sin, int heads, int dim, int is_packed) {
    wait_for_previous();
    let_next_start();
    int token = blockIdx.x, half = dim / 2, each = half / 8, i = threadIdx.x;
    const u16* from = qkv + (size_t)token * (heads + 2) * dim;
    if (i >= (heads + 1) * each) {
        int e = (i - (heads + 1) * each) * 8;
        int at = is_packed ? e % half * 2 + e / half * 8 : e;
        if (e < dim) *(uint4*)(v + (size_t)token * dim + e) = *(const uint4*)(from + (heads + 1) * dim + at);
        return;
    }
    int head = i / each, j = i % each * 8;
    const u16* at = from + head * dim + (is_packed ? 2 * j : j);
    uint4 a = *(const uint4*)at, b = *(const uint4*)(at + (is_packed ? 8 : half)), x, y;
    const u32 *as = &a.x, *bs = &b.x;
    u32 *xs = &x.x, *ys = &y.x;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float2 c = *(const float2*)(cos + token * half + j + 2 * e), s = *(const float2*)(sin + token * half + j + 2 * e);
        float a0 = of_bf16(as[e] & 0xffff), a1 = of_bf16(as[e] >> 16), b0 = of_bf16(bs[e] & 0xffff), b1 = of_bf16(bs[e] >> 16);
        xs[e] = pack_bf16(a0 * c.x - b0 * s.x, a1 * c.y - b1 * s.y);
        ys[e] = pack_bf16(b0 * c.x + a0 * s.x, b1 * c.y + a1 * s.y);
    }
    u16* to = head < heads ? q + ((size_t)token * heads + head) * dim : k + (size_t)token * dim;
    *(uint4*)(to + j) = x;
    *(uint4*)(to + half + j) = y;
}
#endif

// One warp per row of logits [rows, ld]: softmax(logits * scale) over the keys that count, 0 elsewhere, to T.
// Keys below *valid (all below `prefix` if null) count, and those from `prefix` to `keys`.
extern "C" __global__ void softmax(const float* logits, T* out, const int* valid, int rows, int prefix, int keys,
                                   int ld, float scale) {
    wait_for_previous();
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    int end = valid ? *valid : prefix;
    const float* from = logits + (size_t)row * ld;
    T* to = out + (size_t)row * ld;
    float top = -1e30f;
    for (int j = lane; j < keys; j += WARP)
        if (j < end || j >= prefix) top = fmaxf(top, from[j] * scale);
    top = warp_max(top);
    float sum = 0.0f;
    for (int j = lane; j < keys; j += WARP)
        if (j < end || j >= prefix) sum += expf(from[j] * scale - top);
    float r = 1.0f / warp_sum(sum);
    for (int j = lane; j < ld; j += WARP) {
        bool counts = j < keys && (j < end || j >= prefix);
        to[j] = store(counts ? expf(from[j] * scale - top) * r : 0.0f);
    }
    let_next_start();
}

// hidden[row][i] = GELU(gate) * up of gate_up [rows, 2 mlp]; grid: (mlp / block, rows).
extern "C" __global__ void geglu(const T* gate_up, T* hidden, int mlp) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    const T* row = gate_up + (size_t)blockIdx.y * 2 * mlp;
    if (i < mlp) hidden[(size_t)blockIdx.y * mlp + i] = store(gelu_tanh(load(row[i])) * load(row[mlp + i]));
    let_next_start();
}
#ifdef BF16
// The same, eight at a time; mlp is a multiple of 8.
extern "C" __global__ void geglu_8(const uint4* gate_up, uint4* hidden, int mlp) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint4* row = gate_up + (size_t)blockIdx.y * 2 * (mlp / 8);
    if (i < mlp / 8) {
        uint4 a = row[i], b = row[mlp / 8 + i], r;
        const u32* g = &a.x; const u32* u = &b.x; u32* o = &r.x;
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[e] = pack_bf16(gelu_tanh(of_bf16(g[e] & 0xffff)) * of_bf16(u[e] & 0xffff),
                             gelu_tanh(of_bf16(g[e] >> 16)) * of_bf16(u[e] >> 16));
        hidden[(size_t)blockIdx.y * (mlp / 8) + i] = r;
    }
    let_next_start();
}
#endif

// In place; grid-stride.
extern "C" __global__ void gelu(T* x, int count) {
    wait_for_previous();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        x[i] = store(gelu_tanh(load(x[i])));
    let_next_start();
}

// grid: rows; block: any, at least dim. action += pending * velocity; x[row] = action[row] W^T + b, W [width, dim] f32.
extern "C" __global__ void action_in(float* action, const float* velocity, float pending, const float* w, const float* b,
                                     float* x, int dim, int width) {
    extern __shared__ float a[];
    wait_for_previous();
    for (int j = threadIdx.x; j < dim; j += blockDim.x) {
        float value = action[blockIdx.x * dim + j];
        if (pending != 0.0f) {
            value += pending * velocity[blockIdx.x * dim + j];
            action[blockIdx.x * dim + j] = value;
        }
        a[j] = value;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = b[i];
        for (int j = 0; j < dim; j++) sum += a[j] * w[i * dim + j];
        x[(size_t)blockIdx.x * width + i] = sum;
    }
    let_next_start();
}
// grid: rows; block: a multiple of 32. velocity = norm(x) W^T + b, W [dim, width]. The last norm is adaRMS in f32; the
// first `clean` rows' is `to_clean` floats further on.
extern "C" __global__ void action_out(const float* x, const float* scale, const float* shift, int clean, int to_clean,
                                      const float* w, const float* b, float* velocity, int dim, int width) {
    extern __shared__ float h[];
    wait_for_previous();
    if ((int)blockIdx.x < clean) {
        scale += to_clean;
        shift += to_clean;
    }
    const float* row = x + (size_t)blockIdx.x * width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += row[i] * row[i];
    float r = rsqrtf(block_sum(squares) / width + 1e-6f);
    for (int i = threadIdx.x; i < width; i += blockDim.x) h[i] = row[i] * r * scale[i] + shift[i];
    __syncthreads();
    int lane = threadIdx.x % WARP;
    for (int j = threadIdx.x / WARP; j < dim; j += blockDim.x / WARP) {
        float sum = 0.0f;
        for (int i = lane; i < width; i += WARP) sum += h[i] * w[j * width + i];
        sum = warp_sum(sum);
        if (lane == 0) velocity[blockIdx.x * dim + j] = sum + b[j];
    }
    let_next_start();
}

// What a stage that is not ours is told of a chunk; a thread per value. mask [rows]: 0 for keys below *valid, else so
// little that they weigh nothing; own_cos, own_sin [tokens, half]: the tables from position *valid on; is_clean [tokens]:
// 1 for the first `clean`, else 0.
extern "C" __global__ void mask_and_positions(const int* valid, const float* cos, const float* sin, float* mask,
                                              float* own_cos, float* own_sin, float* is_clean, int rows, int tokens,
                                              int half, int clean) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x, first = *valid;
    if (i < rows) mask[i] = i < first ? 0.0f : -1e30f;
    if (i < tokens) is_clean[i] = i < clean ? 1.0f : 0.0f;
    if (i < tokens * half) {
        own_cos[i] = cos[(size_t)first * half + i];
        own_sin[i] = sin[(size_t)first * half + i];
    }
    let_next_start();
}
// vt [dim, keys] = v [rows, dim] transposed; grid: tiles of 32 rows, tiles of 32 columns; block: 256.
extern "C" __global__ void transpose_values(const T* v, T* vt, int rows, int dim, int keys) {
    __shared__ T tile[32][33];
    wait_for_previous();
    int x = threadIdx.x % 32, row = blockIdx.x * 32, column = blockIdx.y * 32;
    for (int y = threadIdx.x / 32; y < 32; y += 8)
        if (row + y < rows && column + x < dim) tile[y][x] = v[(size_t)(row + y) * dim + column + x];
    __syncthreads();
    for (int y = threadIdx.x / 32; y < 32; y += 8)
        if (row + x < rows && column + y < dim) vt[(size_t)(column + y) * keys + row + x] = tile[x][y];
    let_next_start();
}
