// Matrix products on Hopper with what follows them: y = f(x W^T), both operands by the tensor copy engine into rings of
// shared memory, multiplied by two warpgroups, each with its accumulators. bf16, or e4m3 if FP8 is set, accumulated in f32.
//
// A block's tile: 128 rows of x by N rows of W, in steps of 128 bytes of k. Clusters of ROWS_ x COLUMNS blocks: each block
// loads its share of a tile of x (W) and sends it to all blocks of its row (column). Weights do not depend on the kernel
// before, so the first steps' are fetched before it has ended.

#if __CUDA_ARCH__ == 900
struct __align__(64) Map { u64 words[16]; }; // as the driver encodes it

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
#ifdef FP8
#define PRODUCT(N, COUNT, TEXT, OPERANDS, A, B, P)                                                                          \
    __device__ __forceinline__ void multiply(float (&d)[COUNT], u64 a, u64 b, int more) {                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" TEXT "}, " A ", " B ", p, 1, 1;\n}\n"    \
                     : OPERANDS : "l"(a), "l"(b), "r"(more));                                                              \
    }
#else
#define PRODUCT(N, COUNT, TEXT, OPERANDS, A, B, P)                                                                          \
    __device__ __forceinline__ void multiply(float (&d)[COUNT], u64 a, u64 b, int more) {                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEXT "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n" \
                     : OPERANDS : "l"(a), "l"(b), "r"(more));                                                              \
    }
#endif
#define O160 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9)
PRODUCT(160, 80, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9, O160, "%80", "%81", "%82")
#define O208 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12)
PRODUCT(208, 104, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12, O208, "%104", "%105", "%106")
#define O256 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12), E(13), E(14), E(15)
PRODUCT(256, 128, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12 ", " T13 ", " T14 ", " T15, O256, "%128", "%129", "%130")

__device__ __forceinline__ u32 address_of(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void gate_init(u32 gate, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(gate), "r"(count) : "memory"); }
__device__ __forceinline__ void gate_expect(u32 gate, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(gate), "r"(bytes) : "memory");
}
__device__ __forceinline__ void gate_wait(u32 gate, u32 parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra.uni done;\nbra.uni again;\ndone:\n}\n" ::"r"(gate), "r"(parity) : "memory");
}
// Arrives at the same gate of another block of the cluster.
__device__ __forceinline__ void gate_arrive(u32 gate, u32 block) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(gate), "r"(block) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// A box at column x, row y of a matrix to the same place in all blocks of `blocks`.
__device__ __forceinline__ void fetch(u32 to, const Map* map, u32 gate, int x, int y, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(map), "r"(gate), "r"(x), "r"(y), "h"(blocks)
                 : "memory");
}
template <int N> __device__ __forceinline__ void warpgroup_sync(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(N) : "memory"); }
__device__ __forceinline__ void put(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }
__device__ __forceinline__ void put_half(u32 at, u16 x) { asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(x) : "memory"); }
__device__ __forceinline__ uint4 get(u32 at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
    return x;
}
// Two floats as e4m3, the first in the low byte; beyond 448 is 448.
__device__ __forceinline__ u16 pack_e4m3(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}

// What follows the product.
#define GEGLU 0 // W = [gate; up]: GELU(gate) * up
#define BIAS 1
#define BIAS_GELU 2

#define PRODUCT_THREADS 384

#ifdef FP8
#define OPERAND_BYTES 1
#else
#define OPERAND_BYTES 2
#endif

// rows, columns of y (a multiple of 8, FP8: 16); steps of 128 bytes of k. FP8: multipliers of W's rows (their scale times
// x's); inverse: of y's scale.
template <int N, int ROWS_, int COLUMNS, int STAGES, int KIND, bool TO_FP8>
__device__ __forceinline__ void product(const Map& x, const Map& w, int rows, int columns, int steps, void* y,
        const u16* bias, const float* multipliers, float inverse) {
    constexpr int STAGE = (128 + N) * 128, STEP = 128 / OPERAND_BYTES;
    constexpr bool PERSISTS = KIND == GEGLU;
    constexpr int WIDE = KIND == GEGLU ? N / 2 : N, PITCH = WIDE * (TO_FP8 ? 1 : 2) + 16;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), staging = PERSISTS ? ring + STAGES * STAGE : ring;
    u32 full = ring + STAGES * STAGE + (PERSISTS ? 128 * PITCH : 0), empty = full + STAGES * 8;
    int group = threadIdx.x / 128, rank = blockIdx.y, row_of = rank % ROWS_, column_of = rank / ROWS_;
    int tiles_m = (rows + ROWS_ * 128 - 1) / (ROWS_ * 128), tiles = tiles_m * (((columns + WIDE - 1) / WIDE + COLUMNS - 1) / COLUMNS);
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
        if (threadIdx.x == 0) {
            u16 to_row = 0, to_column = 0; // x goes along the row, W along the column
            for (int c = 0; c < COLUMNS; c++) to_row |= 1 << (c * ROWS_ + row_of);
            for (int r = 0; r < ROWS_; r++) to_column |= 1 << (column_of * ROWS_ + r);
            int ahead = steps < STAGES ? steps : STAGES; // W fetched before the kernel before has ended
            int step = 0;
            auto fetch_w = [&](int tile, int s, int stage) {
                int n = tile / tiles_m * COLUMNS + column_of;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    if (ROWS_ == 2 && h != row_of) continue;
                    int at = KIND == GEGLU ? h * columns + n * (N / 2) : n * N + h * (N / 2);
                    fetch(ring + stage * STAGE + 128 * 128 + h * (N / 2) * 128, &w, full + stage * 8, s * STEP, at, to_column);
                }
            };
            auto fetch_x = [&](int tile, int s, int stage) {
                int m = (tile % tiles_m * ROWS_ + row_of) * 128 + column_of * (128 / COLUMNS);
                fetch(ring + stage * STAGE + column_of * (128 / COLUMNS) * 128, &x, full + stage * 8, s * STEP, m, to_row);
            };
            if ((int)blockIdx.x < tiles)
                for (int s = 0; s < ahead; s++) {
                    gate_expect(full + s * 8, STAGE);
                    fetch_w(blockIdx.x, s, s);
                }
            wait_for_previous();
            for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
                for (int s = 0; s < steps; s++, step++) {
                    int stage = step % STAGES;
                    if (step >= ahead) {
                        if (step >= STAGES) gate_wait(empty + stage * 8, (step / STAGES - 1) % 2);
                        gate_expect(full + stage * 8, STAGE);
                        fetch_w(tile, s, stage);
                    }
                    fetch_x(tile, s, stage);
                }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = group - 1, t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, c = t % 4;
        // Whom to tell that a stage is free: all who write to it.
        bool tells = t < ROWS_ + COLUMNS - 1;
        int told = t < ROWS_ ? column_of * ROWS_ + t : (t - ROWS_ + (t - ROWS_ >= column_of)) * ROWS_ + row_of;
        wait_for_previous();
        let_next_start();
        int step = 0;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            float d[N / 2];
            for (int s = 0; s < steps; s++, step++) {
                int stage = step % STAGES;
                gate_wait(full + stage * 8, step / STAGES % 2);
                u32 at = ring + stage * STAGE;
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    multiply(d, operand(at + half * 64 * 128 + i * 32, 16, 1024), operand(at + 128 * 128 + i * 32, 16, 1024), (s | i) != 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (s > 0 && tells) gate_arrive(empty + (step - 1) % STAGES * 8, told);
            }
            wgmma_wait<0>();
            if (tells) gate_arrive(empty + (step - 1) % STAGES * 8, told);
            int n = tile / tiles_m * COLUMNS + column_of;
            int top = (tile % tiles_m * ROWS_ + row_of) * 128 + half * 64; // this warpgroup's first row of y
            int row = warp * 16 + g;
#ifdef FP8
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                int at = (KIND == GEGLU ? (j >= N / 16) * columns + n * (N / 2) + j % (N / 16) * 8 : n * N + j * 8) + c * 2;
                float2 f = *(const float2*)(multipliers + at);
                d[j * 4] *= f.x; d[j * 4 + 1] *= f.y; d[j * 4 + 2] *= f.x; d[j * 4 + 3] *= f.y;
            }
#endif
            // Through shared memory, so that rows are written whole.
            if (PERSISTS) warpgroup_sync<128>(1 + half); else warpgroup_sync<256>(0);
            u32 mine = staging + half * 64 * PITCH, low = mine + row * PITCH + c * (TO_FP8 ? 2 : 4), high = low + 8 * PITCH;
            auto pair = [&](int j, float a0, float a1, float b0, float b1) {
                if (TO_FP8) {
                    put_half(low + j * 8, pack_e4m3(a0 * inverse, a1 * inverse));
                    put_half(high + j * 8, pack_e4m3(b0 * inverse, b1 * inverse));
                } else {
                    put(low + j * 16, pack_bf16(a0, a1));
                    put(high + j * 16, pack_bf16(b0, b1));
                }
            };
            if (KIND == GEGLU) {
#pragma unroll
                for (int j = 0; j < N / 16; j++) {
                    float *a = d + j * 4, *u = d + N / 4 + j * 4;
                    pair(j, gelu_tanh(a[0]) * u[0], gelu_tanh(a[1]) * u[1], gelu_tanh(a[2]) * u[2], gelu_tanh(a[3]) * u[3]);
                }
            } else {
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                    float* a = d + j * 4;
                    u32 both = *(const u32*)(bias + min(n * N + j * 8 + c * 2, columns - 2));
                    float b0 = of_bf16(both & 0xffff), b1 = of_bf16(both >> 16);
                    if (KIND == BIAS)
                        pair(j, a[0] + b0, a[1] + b1, a[2] + b0, a[3] + b1);
                    else
                        pair(j, gelu_tanh(a[0] + b0), gelu_tanh(a[1] + b1), gelu_tanh(a[2] + b0), gelu_tanh(a[3] + b1));
                }
            }
            warpgroup_sync<128>(1 + half);
            constexpr int CHUNKS = WIDE * (TO_FP8 ? 1 : 2) / 16, EACH = TO_FP8 ? 16 : 8; // 16 bytes each
            for (int e = t; e < 64 * CHUNKS; e += 128) {
                int r = e / CHUNKS, chunk = e % CHUNKS, column = n * WIDE + chunk * EACH;
                uint4 values = get(mine + r * PITCH + chunk * 16);
                if (top + r >= rows || column >= columns) continue;
                *(uint4*)((u8*)y + ((size_t)(top + r) * columns + column) * (TO_FP8 ? 1 : 2)) = values;
            }
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

#define KERNEL(NAME, N, ROWS_, COLUMNS, STAGES, KIND, TO_FP8)                                                                \
    extern "C" __global__ __launch_bounds__(PRODUCT_THREADS, 1) void NAME(const __grid_constant__ Map x,                   \
            const __grid_constant__ Map w, int rows, int columns, int steps, void* y, const u16* bias,                     \
            const float* multipliers, float inverse) {                                                                      \
        product<N, ROWS_, COLUMNS, STAGES, KIND, TO_FP8>(x, w, rows, columns, steps, y, bias, multipliers, inverse);       \
    }
#ifdef FP8
KERNEL(geglu_fp8, 256, 2, 1, 4, GEGLU, true)
KERNEL(bias_fp8, 160, 2, 1, 5, BIAS, false)
KERNEL(bias_gelu_fp8, 208, 2, 1, 5, BIAS_GELU, true)
#else
KERNEL(geglu_bf16, 256, 2, 1, 4, GEGLU, false)
#endif
#endif
