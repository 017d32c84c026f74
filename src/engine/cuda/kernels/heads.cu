// SigLIP's q, k, v and attention on Hopper in one kernel: 256 tokens per image, heads of 72. A block has half of an image's
// tokens and one head: its tile of x by 72 rows of W each for q, k and v comes in steps of 128 bytes of k. Queries stay in
// registers, as the first operand of what follows; keys and values go to shared memory and from there to the block that has
// the image's other half. With those of its own a block begins before the other's have come. Clusters: both halves share W,
// HEADS heads share x. bf16; if E4M3 is set, x and W are e4m3, and columns have multipliers instead of a norm.

#if __CUDA_ARCH__ == 900
#define HEAD 72
#define PARTS 3 // q, k, v
// d [64 x 128] (+)= a [64 x 16] in registers, b [128 x 16]^T in shared memory with k contiguous.
__device__ __forceinline__ void multiply_keys(float (&d)[64], const u32 (&a)[4], u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 "}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
                 : O128 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}
// d [64 x 72] (+)= a [64 x 16] in registers, b [16 x 72] in shared memory with columns contiguous.
__device__ __forceinline__ void multiply_values(float (&d)[HEAD / 2], const u32* a, u64 b, int more) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %41, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {" T0 ", " T1 ", " T2 ", " T3 ", %32, %33, %34, %35}, "
                 "{%36, %37, %38, %39}, %40, p, 1, 1, 1;\n}\n"
                 : O64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));
}
// A piece of this block's shared memory to another block's, counted by a gate there.
__device__ __forceinline__ void send(u32 to, u32 from, u32 bytes, u32 gate) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "r"(from), "r"(bytes), "r"(gate) : "memory");
}

// Keys or values of 128 tokens: by 8 columns, 16 bytes of each token. So their tiles of 8 x 8 are whole, neither stores nor
// the matrix units find two in the same bank, and nothing is swizzled.
#define LINE (128 * 16)
#define LINES (HEAD / 8)
#define SEEN (LINES * LINE)
__device__ __forceinline__ void ask_keys(float (&s)[64], const u32 (&q)[5][4], u32 keys) {
    wgmma_fence();
    // The last step has 8 columns: queries have zeros after them, keys the same 8 again.
#pragma unroll
    for (int k = 0; k < 5; k++) multiply_keys(s, q[k], flat(keys + k * 2 * LINE, k < 4 ? LINE : 0, 128), k > 0);
    wgmma_commit();
}

// Scores of 32 keys to powers of 2 in bf16, and their sums.
__device__ __forceinline__ void exponentiate(const float (&s)[64], int part, u32 (&p)[32], float (&sum)[2], const float (&top)[2], float scale) {
#pragma unroll
    for (int i = part * 16; i < part * 16 + 16; i += 2) {
        float a = power_of_2(fmaf(s[i], scale, -top[i / 2 % 2])), b = power_of_2(fmaf(s[i + 1], scale, -top[i / 2 % 2]));
        sum[i / 2 % 2] += a + b;
        p[i / 2] = pack_bf16(a, b);
    }
}
// Those times values.
__device__ __forceinline__ void ask_values(float (&o)[HEAD / 2], const u32 (&p)[32], int part, u32 values, bool more) {
    wgmma_fence();
#pragma unroll
    for (int k = part * 2; k < part * 2 + 2; k++) multiply_values(o, p + 4 * k, flat(values + k * 256, 128, LINE), more || k > part * 2);
    wgmma_commit();
}
// top, of a row, to the largest of these scores if that is larger.
__device__ __forceinline__ void raise(float (&top)[2], const float (&s)[64], float scale) {
    float high[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < 64; i++) high[i / 2 % 2] = fmaxf(high[i / 2 % 2], s[i]);
#pragma unroll
    for (int e = 0; e < 2; e++) top[e] = fmaxf(top[e], quad_max(high[e]) * scale);
}

__device__ __forceinline__ void take(uint4& x, u32 at) { x = get(at); }
__device__ __forceinline__ void take(uint2& x, u32 at) { asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at)); }

// A warp's 16 rows of o times r, one after the other from shared `mine` on, so that they are written whole: pieces of 8
// columns.
template <class Piece, class Put>
__device__ __forceinline__ void write_rows(const float (&o)[HEAD / 2], const float (&r)[2], u32 mine, u8* to, int width, Put put_two) {
    constexpr int SIZE = sizeof(Piece) / 8, COUNT = 16 * LINES, EACH = (COUNT + WARP - 1) / WARP;
    int lane = threadIdx.x % WARP;
    u32 at = mine + (lane / 4 * HEAD + lane % 4 * 2) * SIZE;
#pragma unroll
    for (int j = 0; j < LINES; j++) {
        put_two(at + j * 8 * SIZE, o[j * 4] * r[0], o[j * 4 + 1] * r[0]);
        put_two(at + (j + HEAD) * 8 * SIZE, o[j * 4 + 2] * r[1], o[j * 4 + 3] * r[1]);
    }
    __syncwarp();
    Piece pieces[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) take(pieces[i], mine + min(i * WARP + lane, COUNT - 1) * 8 * SIZE);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int e = i * WARP + lane;
        if (e < COUNT) *(Piece*)(to + (e / LINES * width + e % LINES * 8) * SIZE) = pieces[i];
    }
}

// One thread, elected. W of the first AHEAD steps comes before the kernel before has ended.
template <int HEADS, int STAGES, int AHEAD, class P>
__device__ __forceinline__ void fetch_heads(const Map& x, const Map& w, u32 ring, u32 full, u32 empty, int width, int steps, const P& place, int first, int first_row) {
    constexpr int STAGE = (128 + PARTS * HEAD) * 128, PART = 128 / HEADS, STEP = 128 / OPERAND_BYTES; // rows of x; elements of k
    ready(&x);
    u16 to_row = 0, to_column = 3 << place.column_of * 2; // x goes to all heads, W to both halves
    for (int c = 0; c < HEADS; c++) to_row |= 1 << (c * 2 + place.row_of);
    // Of the three, a block fetches one or two in turn.
    auto fetch_w = [&](int s, int stage) {
        gate_expect(full + stage * 8, STAGE);
        for (int p = (s + place.row_of) % 2; p < PARTS; p += 2)
            fetch(ring + stage * STAGE + (128 + p * HEAD) * 128, &w, full + stage * 8, s * STEP, p * width + first, to_column);
    };
    fetch_tile<STAGES>(empty, steps, AHEAD, fetch_w, [&](int s, int stage) {
        fetch(ring + stage * STAGE + place.column_of * PART * 128, &x, full + stage * 8, s * STEP, first_row + place.column_of * PART, to_row);
    });
}

// y [rows, width]: bf16; where x is e4m3, that too, times `inverse`, if that is not 0, and columns' multipliers are where
// others have `of_means`. rows: of whole images. scale includes log2 e. grid: (images, 2 * HEADS, heads / HEADS), block: 384.
template <int HEADS, int STAGES, int AHEAD>
__device__ __forceinline__ void heads(const Map& x, const Map& w, int rows, int width, int steps, void* y, const float* bias,
        const Norm& norm, float scale, float inverse) {
    constexpr int N = PARTS * HEAD, STAGE = (128 + N) * 128;
    extern __shared__ __align__(1024) unsigned char room[];
    // What is the block's own lies where operands were.
    u32 ring = address_of(room), own = ring + steps % STAGES * STAGE, others = ring + STAGES * STAGE, vectors = others + 2 * SEEN, factors = vectors + N * 8;
    u32 full = factors + 128 * 8, empty = full + STAGES * 8, keys_came = empty + STAGES * 8, values_came = keys_came + 8;
    Place<2, HEADS, N> place(rows, width); // in the cluster; the grid says which image and heads
    int first = (blockIdx.z * HEADS + place.column_of) * HEAD, first_row = (blockIdx.x * 2 + place.row_of) * 128;
    if (threadIdx.x == 0) {
        open_gates<2, HEADS, STAGES>(full, empty);
        gate_init(keys_came, 1);
        gate_init(values_came, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        gate_expect(keys_came, SEEN);
        gate_expect(values_came, SEEN);
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected()) fetch_heads<HEADS, STAGES, AHEAD>(x, w, ring, full, empty, width, steps, place, first, first_row);
            __syncwarp();
        } else {
            fetch_vectors(vectors, factors, N, first_row, rows, bias, norm, [&](int i) { return i / HEAD * width + first + i % HEAD; });
            asm volatile("bar.arrive 3, 352;" ::: "memory");
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128, row = half * 64 + t / 32 * 16 + t % 32 / 4, c = t % 4;
        u32 tell = place.tell(t, empty), at = own + row * 16 + c * 4;
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        float d[N / 2];
        float4 of[2 * LINES];
        auto vectors_of = [&](int part, float4* of) {
#pragma unroll
            for (int j = 0; j < LINES; j++) of[j] = get_4(vectors + ((part * LINES + j) * 8 + c * 2) * 8);
        };
        multiply_tile<N>(d, ring, full, place.tells(t), tell, steps, turn, half, [&] {
            warpgroup_sync<352>(2); // the vectors have come; of the ring, nobody reads more than the last step any more
            vectors_of(1, of);
            vectors_of(0, of + LINES);
        });
        float2 low = get_2(factors + row * 8), high = get_2(factors + (row + 8) * 8);
        // 8 columns of two rows.
        auto finished = [&](int j, float4 of) {
            const float* a = d + j * 4;
#ifdef E4M3
            return make_uint2(pack_bf16(fmaf(a[0], of.y, of.x), fmaf(a[1], of.w, of.z)), pack_bf16(fmaf(a[2], of.y, of.x), fmaf(a[3], of.w, of.z)));
#else
            return make_uint2(pack_bf16((a[0] - low.y * of.y) * low.x + of.x, (a[1] - low.y * of.w) * low.x + of.z),
                              pack_bf16((a[2] - high.y * of.y) * high.x + of.x, (a[3] - high.y * of.w) * high.x + of.z));
#endif
        };
        auto store = [&](int part, const float4* of, u32 to) {
#pragma unroll
            for (int j = 0; j < LINES; j++) {
                uint2 both = finished(part * LINES + j, of[j]);
                put(to + j * LINE, both.x);
                put(to + j * LINE + 8 * 16, both.y);
            }
            fence_async();
        };
        // Once they are all there, one thread sends them to the block of the image's other half.
        auto share = [&](u32 from, u32 to, u32 gate) {
            warpgroup_sync<256>(0);
            if (threadIdx.x < 128 + 32) {
                if (is_elected()) send(in_block(to, blockIdx.y ^ 1), from, SEEN, in_block(gate, blockIdx.y ^ 1));
                __syncwarp();
            }
        };
        store(1, of, at);
        // Queries as operands; what goes beyond 72 columns is zeros.
        u32 q[5][4] = {};
#pragma unroll
        for (int j = 0; j < LINES; j++) {
            uint2 both = finished(j, of[LINES + j]);
            q[j / 2][j % 2 * 2] = both.x;
            q[j / 2][j % 2 * 2 + 1] = both.y;
        }
        vectors_of(2, of);
        share(own, others, keys_came);
        // Scores with the block's own keys, then with the other's: asked for before the powers of the ones before are made.
        float s[64], other_s[64], o[HEAD / 2], top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
        u32 p[32], other_p[32];
        ask_keys(s, q, own);
        store(2, of, at + SEEN);
        share(own + SEEN, others + SEEN, values_came);
        wgmma_wait<0>();
        raise(top, s, scale);
        gate_wait(keys_came, 0);
        ask_keys(other_s, q, others);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            exponentiate(s, i, p, sum, top, scale);
            ask_values(o, p, i, own + SEEN, i > 0);
        }
        wgmma_wait<2>();
        float all_top[2] = {top[0], top[1]}, other_sum[2] = {0.0f, 0.0f};
        raise(all_top, other_s, scale);
#pragma unroll
        for (int i = 2; i < 4; i++) {
            exponentiate(s, i, p, sum, top, scale);
            ask_values(o, p, i, own + SEEN, i > 0);
        }
        float less[2] = {power_of_2(top[0] - all_top[0]), power_of_2(top[1] - all_top[1])}, r[2];
        gate_wait(values_came, 0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            exponentiate(other_s, i, other_p, other_sum, all_top, scale);
            if (i == 0) {
                wgmma_wait<0>();
#pragma unroll
                for (int j = 0; j < HEAD / 2; j++) o[j] *= less[j / 2 % 2];
            }
            ask_values(o, other_p, i, others + SEEN, true);
        }
        // Now, not when it is used: while the matrix units are still busy.
#pragma unroll
        for (int e = 0; e < 2; e++) asm volatile("rcp.approx.ftz.f32 %0, %1;" : "=f"(r[e]) : "f"(quad_sum(fmaf(sum[e], less[e], other_sum[e]))));
        wgmma_wait<0>();
        // Through shared memory where nothing else is.
        int of_warp = half * 64 + t / WARP * 16;
        u32 mine = ring + (steps + 1) % STAGES * STAGE + of_warp * HEAD * 2;
        size_t to = (size_t)(first_row + of_warp) * width + first;
#ifdef E4M3
        if (inverse != 0.0f)
            write_rows<uint2>(o, r, mine, (u8*)y + to, width, [=](u32 at, float a, float b) { put_half(at, pack_e4m3(a * inverse, b * inverse)); });
        else
#endif
            write_rows<uint4>(o, r, mine, (u8*)y + to * 2, width, [](u32 at, float a, float b) { put(at, pack_bf16(a, b)); });
    }
    cluster_sync(); // nobody goes while others may still tell it something, or take from it
}

#define VISION_HEADS(NAME, HEADS, STAGES, AHEAD)                                                                             \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ Map x, const __grid_constant__ Map w, \
            int rows, int width, int steps, void* y, const float* bias, const float* of_columns, const float2* sums, int blocks, \
            float per_width, float scale, float inverse) {                                                                  \
        heads<HEADS, STAGES, AHEAD>(x, w, rows, width, steps, y, bias, {sums, blocks, per_width, of_columns}, scale, inverse); \
    }
#ifdef E4M3
VISION_HEADS(vision_heads_e4m3, 2, 4, 2)
#else
VISION_HEADS(vision_heads, 2, 4, 1)
#endif
#endif
