// q, k and v of a layer of Gemma's prefix in one product: what follows it turns q and k by their positions and writes all
// three where attention takes them, q [rows, heads, 256], k and v [rows, 256]. As products.cu.
//
// RoPE pairs columns j and j + 128 of a head. W's rows are packed so that both are sums of the same thread: 8 rows of a
// head's first half, then their partners of the second (order.rs). Heads: those of q, then k's and v's, which is not turned.

#if __CUDA_ARCH__ == 900
#define HEAD 256
#define EIGHTS (HEAD / 16) // of columns of a head's half
struct Heads {
    u16 *q, *k, *v;
    int count; // of q
};
// Here and now, as `read_4`; of what no kernel writes.
__device__ __forceinline__ float4 read_turn(const float4* from) {
    float4 x;
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from));
    return x;
}

// turns [positions / 8][EIGHTS][32]: cos, cos, sin, sin of a lane's position and two columns, as a matrix instruction's
// result lies; a row's position is its number. One tile per block. columns: a multiple of HEAD; steps of 64 of k. block: 384.
template <int N, int ROWS_, int COLUMNS, int STAGES>
__device__ __forceinline__ void turned(const Map& x, const Map& w, int rows, int columns, int steps, const Heads& heads, const float4* turns) {
    constexpr int STAGE = (128 + N) * 128, PITCH = N * 2 + 16, PAIRS = N / 16; // pairs of eights of columns
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), full = ring + STAGES * STAGE, empty = full + STAGES * 8;
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
                fetch_all<N, ROWS_, COLUMNS, STAGES, 2>(x, w, ring, full, empty, steps, place, [&](int tile, int h) { return place.n(tile) * N + h * (N / 2); });
            __syncwarp();
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128, row = half * 64 + t / 32 * 16 + t % 32 / 4, c = t % 4;
        int first = place.n(blockIdx.x) * PAIRS, top = place.m(blockIdx.x);
        u32 tell = place.tell(t, empty);
        // Turns wait in registers: they depend on no kernel, and after the product they would come late.
        float4 low_turn[PAIRS], high_turn[PAIRS];
        const float4* turns_at = turns + (size_t)(min(top + row, rows - 1) / 16) * (2 * EIGHTS * 32) + t % 32;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            low_turn[i] = high_turn[i] = make_float4(1.0f, 1.0f, 0.0f, 0.0f);
            if ((first + i) / EIGHTS <= heads.count) {
                const float4* from = turns_at + (first + i) % EIGHTS * 32;
                low_turn[i] = read_turn(from);
                high_turn[i] = read_turn(from + EIGHTS * 32);
            }
        }
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        float d[N / 2];
        multiply_tile<N, STAGES>(d, ring, full, place.tells(t), tell, steps, turn, half);
        // Through shared memory, so that parts of heads are written whole; nobody reads the ring any more.
        warpgroup_sync<256>(0);
        u32 low = ring + row * PITCH + c * 4, high = low + 8 * PITCH;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const float *a = d + i * 8, *b = a + 4;
            float4 l = low_turn[i], h = high_turn[i];
            put(low + i * 16, pack_bf16(a[0] * l.x - b[0] * l.z, a[1] * l.y - b[1] * l.w));
            put(low + N + i * 16, pack_bf16(b[0] * l.x + a[0] * l.z, b[1] * l.y + a[1] * l.w));
            put(high + i * 16, pack_bf16(a[2] * h.x - b[2] * h.z, a[3] * h.y - b[3] * h.w));
            put(high + N + i * 16, pack_bf16(b[2] * h.x + a[2] * h.z, b[3] * h.y + a[3] * h.w));
        }
        warpgroup_sync<128>(1 + half);
        // 16 bytes each, of a row; a thread has the same ones of every HEIGHT-th row.
        constexpr int CHUNKS = N / 8, HEIGHT = 128 / CHUNKS, EACH = (64 + HEIGHT - 1) / HEIGHT;
        int local = t / CHUNKS, chunk = t % CHUNKS, pair = first + chunk % PAIRS, head = pair / EIGHTS;
        bool is_q = head < heads.count;
        size_t pitch = (is_q ? heads.count : 1) * HEAD;
        u16* to = is_q ? heads.q + head * HEAD : head == heads.count ? heads.k : heads.v;
        to += (top + half * 64 + local) * pitch + chunk / PAIRS * (HEAD / 2) + pair % EIGHTS * 8;
        int left = local < HEIGHT && pair * 16 < columns ? min(rows - top - half * 64, 64) - local : 0;
        u32 from = ring + (half * 64 + local) * PITCH + chunk * 16;
        uint4 values[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) values[i] = get(from + min(i * HEIGHT, 63 - local) * PITCH);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (i * HEIGHT < left) *(uint4*)(to + i * HEIGHT * pitch) = values[i];
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

#define TURNED(NAME, N, ROWS_, COLUMNS, STAGES)                                                                              \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ Map x, const __grid_constant__ Map w, \
            int rows, int columns, int steps, u16* q, u16* k, u16* v, int heads, const float4* turns) {                     \
        turned<N, ROWS_, COLUMNS, STAGES>(x, w, rows, columns, steps, {q, k, v, heads}, turns);                            \
    }
TURNED(rope_160, 160, 2, 1, 5)
#endif
