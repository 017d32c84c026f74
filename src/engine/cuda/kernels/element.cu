// Numbers: the element type T of activations and weights (bf16 if BF16 is set, else f32), activations, reductions.
// No header of the CUDA toolkit is needed to compile these sources.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define FULL 0xffffffffu

__device__ __forceinline__ u16 bf16_of(float x) {
    u16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float of_bf16(u16 x) { return __uint_as_float((u32)x << 16); }
// Two floats as bf16, the first in the low half.
__device__ __forceinline__ u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

#ifdef BF16
typedef u16 T;
__device__ __forceinline__ float load(T x) { return of_bf16(x); }
__device__ __forceinline__ T store(float x) { return bf16_of(x); }
#else
typedef float T;
__device__ __forceinline__ float load(T x) { return x; }
__device__ __forceinline__ T store(float x) { return x; }
#endif

// The launch may overlap the kernel before it: wait for its results; let the next one start its own prologue.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float gelu_tanh(float x) {
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
#ifdef BF16
    // One instruction, 2^-11 off at most: exact enough for bf16 results.
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(inner));
    return fmaf(0.5f * x, t, 0.5f * x);
#else
    return 0.5f * x * (1.0f + tanhf(inner));
#endif
}

__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL, x, d);
    return x;
}
// Over the four lanes that have parts of the same rows of a matrix instruction's result.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}
// Four words of each of four lanes side by side: afterwards a lane's are the others' words of its own number.
__device__ __forceinline__ void turn_quad(u32 (&v)[4], int lane) {
#pragma unroll
    for (int other = 2; other > 0; other /= 2) {
        bool is_upper = lane & other;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & other) continue;
            u32 got = __shfl_xor_sync(FULL, is_upper ? v[i] : v[i + other], other);
            if (is_upper) v[i] = got; else v[i + other] = got;
        }
    }
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, d));
    return x;
}
// Sum over the block (a multiple of 32 threads, at most 1024); every thread gets it. The order is fixed.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[33];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    if (warp == 0) {
        float y = warp_sum(lane < warps ? parts[lane] : 0.0f);
        if (lane == 0) parts[32] = y;
    }
    __syncthreads();
    float all = parts[32];
    __syncthreads();
    return all;
}
