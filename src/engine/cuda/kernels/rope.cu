// q, k and v of a layer of Gemma's prefix in one product: what follows it rotates q and k by their positions and writes all
// three where attention takes them, q [rows, heads, 256], k and v [rows, 256]. As products.cu.
//
// RoPE pairs columns j and j + 128 of a head. W's rows are packed so that both are sums of the same thread: 8 rows of a
// head's first half, then their partners of the second (order.rs). Heads: those of q, then k's and v's, which is not rotated.
//
// Copies take longer than multiplications: so a cluster is large. W's rows are those of the matrix instruction and x's its
// columns, of which a tile has HIGH, so that little of the last one is empty.

#if __CUDA_ARCH__ == 900
#define ROPE_HEAD 256
#define EIGHTS (ROPE_HEAD / 16) // of columns of a head's half
struct Heads {
    u16 *q, *k, *v;
    int count; // of q
};
// Here and now, as `read_4`; of what no kernel writes.
__device__ __forceinline__ float4 read_rotation(const float4* from) {
    float4 x;
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from));
    return x;
}

// 8 x 8 matrices, each transposed: a lane has the place of a row.
__device__ __forceinline__ void put_turned(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void put_turned(u32 at, u32 a, u32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(at), "r"(a), "r"(b) : "memory");
}

// As `fetch_all`, one thread; one tile. The two blocks of a column fetch half of W each, those of a row a PART of x each:
// parts overlap where they must, since they begin where the swizzled pattern does.
template <int HIGH, int COLUMNS, int STAGES, class P>
__device__ __forceinline__ void fetch_wide(const Map& x, const Map& w, u32 ring, u32 full, u32 empty, int steps, const P& place) {
    constexpr int STAGE = (HIGH + 128) * 128, PART = (HIGH / COLUMNS + 7) / 8 * 8, APART = (HIGH - PART) / (COLUMNS - 1);
    static_assert(APART % 8 == 0, "parts of x");
    ready(&x);
    u16 to_row = 0, to_column = 3 << place.column_of * 2;
    for (int c = 0; c < COLUMNS; c++) to_row |= 1 << (c * 2 + place.row_of);
    int w_row = place.n(blockIdx.x) * 128 + place.row_of * 64, x_row = place.m(blockIdx.x) + place.column_of * APART;
    u32 w_part = (HIGH + place.row_of * 64) * 128, x_part = place.column_of * APART * 128;
    auto fetch_w = [&](int s, int stage) {
        gate_expect(full + stage * 8, (COLUMNS * PART + 128) * 128);
        fetch(ring + stage * STAGE + w_part, &w, full + stage * 8, s * 64, w_row, to_column);
    };
    // More W ahead would be in the way of x.
    fetch_tile<STAGES>(empty, steps, 2, fetch_w, [&](int s, int stage) { fetch(ring + stage * STAGE + x_part, &x, full + stage * 8, s * 64, x_row, to_row); });
}

// rotations [positions / 8][EIGHTS][32]: cos, cos, sin, sin of a lane's two positions and column, as a matrix instruction's
// result lies; a row's position is its number. One tile per block. columns: a multiple of ROPE_HEAD; steps of 64 of k. block: 384.
template <int HIGH, int COLUMNS, int STAGES>
__device__ __forceinline__ void rotated(const Map& x, const Map& w, int rows, int columns, int steps, const Heads& heads, const float4* rotations) {
    constexpr int STAGE = (HIGH + 128) * 128, PITCH = 256 + 16, COUNT = HIGH / 8;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), full = ring + STAGES * STAGE, empty = full + STAGES * 8;
    Place<2, COLUMNS, 128, HIGH> place(rows, columns);
    if (threadIdx.x == 0) {
        open_gates<2, COLUMNS, STAGES>(full, empty);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected()) fetch_wide<HIGH, COLUMNS, STAGES>(x, w, ring, full, empty, steps, place);
            __syncwarp();
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int all = threadIdx.x - 128, half = all / 128, t = all % 128, lane = t % 32, eight = all / 32; // of the tile's 8
        int n = place.n(blockIdx.x), head = n / 2, top = place.m(blockIdx.x);
        bool tells = place.tells(t);
        u32 tell = place.tell(t, empty);
        // Rotations wait in registers: they depend on no kernel, and after the product they would come late.
        float4 rotation_of[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            rotation_of[j] = make_float4(1.0f, 1.0f, 0.0f, 0.0f);
            if (head <= heads.count) rotation_of[j] = read_rotation(rotations + (size_t)(min(top / 8 + j, (rows - 1) / 8) * EIGHTS + n % 2 * 8 + eight) * 32 + lane);
        }
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        float d[HIGH / 2];
        multiply_steps<STAGE>(ring, full, tells, tell, steps, turn, [=, &d](int s, u32 at) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                multiply(d, operand(at + (HIGH + half * 64) * 128 + i * 32, 16, 1024), operand(at + i * 32, 16, 1024), (s | i) != 0);
        }, [] {});
        // Through shared memory, so that parts of heads are written whole; nobody reads the ring any more.
        warpgroup_sync<256>(0);
        // Four 8 x 8 matrices at a time: first halves and partners of 16 rows.
        u32 to = ring + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 128 + eight * 16;
        u32 v[4];
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            const float* a = d + j * 4;
            float4 r = rotation_of[j];
            v[j % 2 * 2] = pack_bf16(a[0] * r.x - a[2] * r.z, a[1] * r.y - a[3] * r.w);
            v[j % 2 * 2 + 1] = pack_bf16(a[2] * r.x + a[0] * r.z, a[3] * r.y + a[1] * r.w);
            if (j % 2 == 1) put_turned(to + (j - 1) * 8 * PITCH, v[0], v[1], v[2], v[3]);
            else if (j == COUNT - 1) put_turned(to + j * 8 * PITCH, v[0], v[1]);
        }
        warpgroup_sync<256>(0);
        // 16 bytes each, of a row; a thread has the same ones of every 16th row.
        constexpr int EACH = (HIGH + 15) / 16;
        int local = all / 16, chunk = all % 16;
        bool is_q = head < heads.count;
        size_t pitch = (is_q ? heads.count : 1) * ROPE_HEAD;
        u16* out = (is_q ? heads.q + head * ROPE_HEAD : head == heads.count ? heads.k : heads.v) + (top + local) * pitch + chunk / 8 * (ROPE_HEAD / 2) + (n % 2 * 8 + chunk % 8) * 8;
        int left = head < heads.count + 2 ? min(rows - top, HIGH) - local : 0;
        uint4 values[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) values[i] = get(ring + min(local + i * 16, HIGH - 1) * PITCH + chunk * 16);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (i * 16 < left) *(uint4*)(out + i * 16 * pitch) = values[i];
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

#define ROTATED(NAME, HIGH, COLUMNS, STAGES)                                                                                 \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ Map x, const __grid_constant__ Map w,  \
            int rows, int columns, int steps, u16* q, u16* k, u16* v, int heads, const float4* rotations) {                  \
        rotated<HIGH, COLUMNS, STAGES>(x, w, rows, columns, steps, {q, k, v, heads}, rotations);                             \
    }
ROTATED(rope_96, 96, 4, 7)
ROTATED(rope_128, 128, 4, 6)
ROTATED(rope_168, 168, 4, 5)
#endif
