// Matrix products of e4m3 on Hopper with what follows them: y = f(x W^T), both operands by the tensor copy engine into rings
// of shared memory, multiplied by two warpgroups, each with its accumulators, accumulated in f32. Rows of W have
// multipliers: their scale times that of x.
//
// A block's tile: 128 rows of x by N rows of W, in steps of 128 bytes of k. Clusters of ROWS_ x COLUMNS blocks: each block
// loads its share of a tile of x (W) and sends it to all blocks of its row (column). Weights do not depend on the kernel
// before, so the first steps' are fetched before it has ended.

#if __CUDA_ARCH__ == 900
__device__ __forceinline__ void put_half(u32 at, u16 x) { asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(x)); }
// Two floats as e4m3, the first in the low byte; beyond 448 is 448.
__device__ __forceinline__ u16 pack_e4m3(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}

// y = x W^T + bias, in bf16; or GELU of it, in e4m3 times `inverse`. One tile per block. columns: a multiple of 16; steps
// of 128 of k. block: 384.
template <int N, int ROWS_, int COLUMNS, int STAGES, bool GELU>
__device__ __forceinline__ void dense(const Map& x, const Map& w, int rows, int columns, int steps, void* y, const float* bias,
        const float* multipliers, float inverse) {
    constexpr int STAGE = (128 + N) * 128, SIZE = GELU ? 1 : 2, PITCH = N * SIZE + 16;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), full = ring + STAGES * STAGE, empty = full + STAGES * 8, vectors = empty + STAGES * 8;
    Place<ROWS_, COLUMNS, N> place(rows, columns);
    if (threadIdx.x == 0) {
        open_gates<ROWS_, COLUMNS, STAGES>(full, empty);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected())
                fetch_all<N, ROWS_, COLUMNS, STAGES, STAGES>(x, w, ring, full, empty, steps, place, [&](int tile, int h) { return place.n(tile) * N + h * (N / 2); });
            __syncwarp();
        } else {
            // Others of this warpgroup get what follows the product: columns' multipliers and biases.
            for (int i = threadIdx.x - 32; i < N; i += 96) {
                int at = min(place.n(blockIdx.x) * N + i, columns - 1);
                put_2(vectors + i * 8, multipliers[at], bias[at]);
            }
            asm volatile("bar.arrive 3, 352;" ::: "memory");
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128, warp = t / 32, g = t % 32 / 4, c = t % 4;
        u32 tell = place.tell(t, empty);
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        int tile = blockIdx.x;
        float d[N / 2];
        multiply_tile<N, STAGES>(d, ring, full, place.tells(t), tell, steps, turn, half);
        // Through shared memory, so that rows are written whole; nobody reads the ring any more.
        warpgroup_sync<352>(2);
        u32 mine = ring + half * 64 * PITCH, low = mine + (warp * 16 + g) * PITCH + c * 2 * SIZE, high = low + 8 * PITCH;
        int first = place.n(tile) * N;
        // Some at a time: reads and writes of shared memory keep their order, and would wait for each other.
        constexpr int GROUP = 4;
#pragma unroll
        for (int next = 0; next < N / 8; next += GROUP) {
            float4 of[GROUP]; // multipliers and biases of two columns
#pragma unroll
            for (int j = next; j < min(next + GROUP, N / 8); j++) of[j - next] = get_4(vectors + (j * 8 + c * 2) * 8);
#pragma unroll
            for (int j = next; j < min(next + GROUP, N / 8); j++) {
                float* a = d + j * 4;
                float4 f = of[j - next];
                a[0] = fmaf(a[0], f.x, f.y); a[1] = fmaf(a[1], f.z, f.w); a[2] = fmaf(a[2], f.x, f.y); a[3] = fmaf(a[3], f.z, f.w);
                if (GELU) {
                    put_half(low + j * 8, pack_e4m3(gelu_fast(a[0]) * inverse, gelu_fast(a[1]) * inverse));
                    put_half(high + j * 8, pack_e4m3(gelu_fast(a[2]) * inverse, gelu_fast(a[3]) * inverse));
                } else {
                    put(low + j * 16, pack_bf16(a[0], a[1]));
                    put(high + j * 16, pack_bf16(a[2], a[3]));
                }
            }
        }
        warpgroup_sync<128>(1 + half);
        constexpr int CHUNKS = N * SIZE / 16, EACH = (CHUNKS + 1) / 2, ALL = 64 * CHUNKS; // 16 bytes each; of a thread; of all
        int top = place.m(tile) + half * 64;
        uint4 values[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int e = min(i * 128 + t, ALL - 1);
            values[i] = get(mine + e / CHUNKS * PITCH + e % CHUNKS * 16);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int e = i * 128 + t, r = top + e / CHUNKS, column = first + e % CHUNKS * (16 / SIZE);
            if (e < ALL && r < rows && column < columns) *(uint4*)((u8*)y + ((size_t)r * columns + column) * SIZE) = values[i];
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

// GEGLU of x W^T + bias, W = [gate; up], to e4m3 times `inverse`. columns: a multiple of 128, of 256 in clusters of columns.
struct ToE4m3 {
    u8* y;
    const float *bias, *multipliers;
    float inverse;
    int columns, first;
    float of_gate[16], of_up[16], gate_bias[16], up_bias[16];
    __device__ __forceinline__ void begin(int column) {
        first = column;
#pragma unroll
        for (int e = 0; e < 16; e++) {
            int at = column + e / 8 * 64 + e % 8;
            of_gate[e] = multipliers[at];
            of_up[e] = multipliers[columns + at] * inverse;
            gate_bias[e] = bias[at];
            up_bias[e] = bias[columns + at] * inverse;
        }
    }
    __device__ __forceinline__ void finish(int h, uint4 gates, uint4 ups, int row, bool counts) const {
        const u32 *g = &gates.x, *u = &ups.x;
        u16 out[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = h * 8 + e * 2;
            float a = gelu_fast(fmaf(of_bf16(g[e] & 0xffff), of_gate[i], gate_bias[i])) * fmaf(of_bf16(u[e] & 0xffff), of_up[i], up_bias[i]);
            i++;
            float b = gelu_fast(fmaf(of_bf16(g[e] >> 16), of_gate[i], gate_bias[i])) * fmaf(of_bf16(u[e] >> 16), of_up[i], up_bias[i]);
            out[e] = pack_e4m3(a, b);
        }
        if (counts)
            *(uint2*)(y + (size_t)row * columns + first + h * 64) = make_uint2(out[0] | (u32)out[1] << 16, out[2] | (u32)out[3] << 16);
    }
};
// The same of sums that lie the other way round.
struct TurnedToE4m3 {
    u8* y;
    const float *bias, *multipliers;
    float inverse;
    int columns;
    float of_gate[2], of_up[2], gate_bias[2], up_bias[2];
    __device__ __forceinline__ void begin(int column) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int at = column + e * 8;
            of_gate[e] = multipliers[at];
            of_up[e] = multipliers[columns + at] * inverse;
            gate_bias[e] = bias[at];
            up_bias[e] = bias[columns + at] * inverse;
        }
    }
    template <int COUNT> __device__ __forceinline__ void finish(float (&gate)[COUNT], float (&up)[COUNT], int column, int top, int rows, int g, int c) const {
        auto value = [&](int at, int e) { return gelu_fast(fmaf(gate[at], of_gate[e], gate_bias[e])) * fmaf(up[at], of_up[e], up_bias[e]); };
        // 32 rows at a time: a lane has the 16 columns of one.
        u8* to = y + (size_t)(top + c * 8 + g) * columns + column;
        int left = rows - top - g - c * 8;
#pragma unroll
        for (int j = 0; j < COUNT / 4; j += 4) {
            u32 v[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = (j + i) * 4;
                if (at >= COUNT) continue;
                u32 both = transposed(pack_e4m3(value(at, 0), value(at + 2, 1)) | (u32)pack_e4m3(value(at + 1, 0), value(at + 3, 1)) << 16);
                v[i] = __byte_perm(both, 0, 0x3120); // columns 2 c, 2 c + 1; 8 further
            }
            turn_quad(v, c);
            write_if(left > j * 8 && j + c < COUNT / 4, to + (size_t)j * 8 * columns,
                make_uint4(__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410), __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632)));
        }
    }
};

#define ARGUMENTS const __grid_constant__ Map x, const __grid_constant__ Map w, int rows, int columns, int steps, void* y, const float* bias, const float* multipliers, float inverse
#define DENSE(NAME, N, ROWS_, COLUMNS, STAGES, GELU)                                                                        \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(ARGUMENTS) {                                                 \
        dense<N, ROWS_, COLUMNS, STAGES, GELU>(x, w, rows, columns, steps, y, bias, multipliers, inverse);                 \
    }
DENSE(dense_64_2x2, 64, 2, 2, 8, false)
DENSE(dense_64_1x2, 64, 1, 2, 8, false)
DENSE(dense_128_1x2, 128, 1, 2, 6, false)
DENSE(dense_128_2x1, 128, 2, 1, 6, false)
DENSE(dense_160_1x2, 160, 1, 2, 5, false)
DENSE(dense_160_2x1, 160, 2, 1, 5, false)
DENSE(gelu_144_2x2, 144, 2, 2, 6, true)
DENSE(gelu_208_2x1, 208, 2, 1, 5, true)
extern "C" __global__ __launch_bounds__(384, 1) void geglu_184_1x2(ARGUMENTS) {
    geglu_turned<184, 1, 2, 4>(x, w, rows, columns, steps, TurnedToE4m3{(u8*)y, bias, multipliers, inverse, columns});
}
#define GEGLU(NAME, ROWS_, COLUMNS)                                                                                         \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(ARGUMENTS) {                                                 \
        ToE4m3 follow{(u8*)y, bias, multipliers, inverse, columns};                                                        \
        geglu_of<ROWS_, COLUMNS, 3>(x, w, rows, columns, steps, follow);                                                   \
    }
GEGLU(geglu_256_2x1, 2, 1)
GEGLU(geglu_256_1x2, 1, 2)
#endif
