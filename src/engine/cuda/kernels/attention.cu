// Attention of vision and prefix in bf16, softmax in registers.

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy_async(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void matrices(u32& a, u32& b, u32& c, u32& d, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at));
}
__device__ __forceinline__ void matrices_transposed(u32& a, u32& b, u32& c, u32& d, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at));
}
__device__ __forceinline__ void mma_16(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_8(float* d, u32 a0, u32 a1, u32 b0) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
}

// Two floats as bf16, or as e4m3 times `inverse` if that is not 0.
__device__ __forceinline__ u32 packed(float a, float b, float inverse) {
    if (inverse == 0.0f) return pack_bf16(a, b);
    u16 r = 0;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(b * inverse), "f"(a * inverse));
#endif
    return r;
}
// The same to elements `at` and the next of `out`.
__device__ __forceinline__ void store_two(void* out, size_t at, float a, float b, float inverse) {
    if (inverse == 0.0f) *(u32*)((u16*)out + at) = packed(a, b, inverse);
    else *(u16*)((u8*)out + at) = packed(a, b, inverse);
}

// SigLIP: 256 tokens per image, heads of 72. qkv [tokens, 3 width]. 64 queries per block, all keys at once.
// grid: (4, heads, images), block 128. scale includes log2 e.
#define SEE 256
#define SEE_DIM 72
extern "C" __global__ __launch_bounds__(128) void vision_attention(const u16* qkv, void* out, int width, float scale, float inverse) {
    extern __shared__ uint4 room[];
    u32 ks = shared_address(room), vs = ks + SEE * SEE_DIM * 2;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    wait_for_previous();
    const u16* base = qkv + (size_t)blockIdx.z * SEE * 3 * width + blockIdx.y * SEE_DIM;
    for (int e = threadIdx.x; e < SEE * (SEE_DIM / 8); e += 128) {
        int row = e / (SEE_DIM / 8), chunk = e % (SEE_DIM / 8);
        const u16* from = base + (size_t)row * 3 * width + width + chunk * 8;
        copy_async(ks + (row * SEE_DIM + chunk * 8) * 2, from);
    }
    copy_commit();
    for (int e = threadIdx.x; e < SEE * (SEE_DIM / 8); e += 128) {
        int row = e / (SEE_DIM / 8), chunk = e % (SEE_DIM / 8);
        copy_async(vs + (row * SEE_DIM + chunk * 8) * 2, base + (size_t)row * 3 * width + 2 * width + chunk * 8);
    }
    copy_commit();
    int row = blockIdx.x * 64 + warp * 16 + g;
    const u16* q0 = base + (size_t)row * 3 * width + c * 2;
    const u16* q1 = q0 + (size_t)8 * 3 * width;
    u32 q[4][4], last[2];
#pragma unroll
    for (int s = 0; s < 4; s++) {
        q[s][0] = *(const u32*)(q0 + s * 16);
        q[s][1] = *(const u32*)(q1 + s * 16);
        q[s][2] = *(const u32*)(q0 + s * 16 + 8);
        q[s][3] = *(const u32*)(q1 + s * 16 + 8);
    }
    last[0] = *(const u32*)(q0 + 64);
    last[1] = *(const u32*)(q1 + 64);
    copy_wait<1>();
    __syncthreads();
    float s[SEE / 8][4];
#pragma unroll
    for (int n = 0; n < SEE / 8; n++) {
        u32 at = ks + ((n * 8 + lane % 8) * SEE_DIM + lane / 8 * 8) * 2;
        u32 b[9], unused[3];
        matrices(b[0], b[1], b[2], b[3], at);
        matrices(b[4], b[5], b[6], b[7], at + 64);
        matrices(b[8], unused[0], unused[1], unused[2], ks + ((n * 8 + lane % 8) * SEE_DIM + 64) * 2);
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) mma_16(s[n], q[k][0], q[k][1], q[k][2], q[k][3], b[2 * k], b[2 * k + 1]);
        mma_8(s[n], last[0], last[1], b[8]);
    }
    float top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < SEE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) top[e / 2] = fmaxf(top[e / 2], s[n][e]);
#pragma unroll
    for (int e = 0; e < 2; e++) top[e] = quad_max(top[e]) * scale;
    float o[SEE_DIM / 8][4] = {};
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SEE / 16; k++) {
        u32 p[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float* t = s[2 * k + half];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                t[e] = power_of_2(fmaf(t[e], scale, -top[e / 2]));
                sum[e / 2] += t[e];
            }
            p[2 * half] = pack_bf16(t[0], t[1]);
            p[2 * half + 1] = pack_bf16(t[2], t[3]);
        }
        u32 at = vs + ((k * 16 + lane % 16) * SEE_DIM + lane / 16 * 8) * 2;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            u32 b[4];
            matrices_transposed(b[0], b[1], b[2], b[3], at + n * 32);
            mma_16(o[2 * n], p[0], p[1], p[2], p[3], b[0], b[1]);
            mma_16(o[2 * n + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
        }
        u32 b[4];
        matrices_transposed(b[0], b[1], b[2], b[3], vs + ((k * 16 + lane % 16) * SEE_DIM + 64) * 2);
        mma_16(o[8], p[0], p[1], p[2], p[3], b[0], b[1]);
    }
    let_next_start();
    float r0 = 1.0f / quad_sum(sum[0]), r1 = 1.0f / quad_sum(sum[1]);
    size_t to = ((size_t)blockIdx.z * SEE + row) * width + blockIdx.y * SEE_DIM + c * 2;
#pragma unroll
    for (int n = 0; n < SEE_DIM / 8; n++) {
        store_two(out, to + n * 8, o[n][0] * r0, o[n][1] * r0, inverse);
        store_two(out, to + (size_t)8 * width + n * 8, o[n][2] * r1, o[n][3] * r1, inverse);
    }
}

#if __CUDA_ARCH__ == 900
// Two floats as f16, the first in the low half, finite; and back.
__device__ __forceinline__ u32 pack_f16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
__device__ __forceinline__ void unpack_f16(u32 x, float& lo, float& hi) {
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}\n" : "=f"(lo), "=f"(hi) : "r"(x));
}
__device__ __forceinline__ void put_4(u32 at, float4 x) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
#define MAP const __grid_constant__ Map
#else
struct Map;
#define MAP const Map*
#endif

// Gemma's prefix: heads of 256 that share keys and values, so that queries are rows [rows, 256] over k, v [keys, 256].
// Keys from *valid on do not count; what lies beyond them is finite. A block has 128 queries, 64 per warpgroup, so that
// what it takes in is used twice, and its part of the keys, which a cluster's blocks share out. While a warpgroup
// exponentiates, the other one multiplies. In the end each block adds up what all of them found, for its part of the columns.
// grid: (rows / 128 rounded up, parts), a cluster along y; block 384: the last warpgroup only fetches. q is mapped in boxes
// of 128 rows, k and v of 64. scale includes log2 e. Hopper only.
#define TILE 8192 // bytes of 64 rows x 64 columns
#define PREFIX_STAGES 5
#define PREFIX_PARTS 4 // 2 at least
extern "C" __global__ __launch_bounds__(384, 1) void prefix_attention(MAP q, MAP k, MAP v, void* out, const int* valid, int rows, float scale,
        float inverse) {
#if __CUDA_ARCH__ == 900
    extern __shared__ uint4 room[];
    int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    // Queries; a ring of tiles of keys and values. Gates: which 64 columns of queries and first keys have come; what has come
    // to the ring and what is free there; whether the other blocks take results, and whether theirs have come.
    u32 qs = (shared_address(room) + 1023) / 1024 * 1024, ring = qs + 8 * TILE, begun = ring + PREFIX_STAGES * 4 * TILE;
    u32 full = begun + 4 * 8, empty = full + PREFIX_STAGES * 8, open = empty + PREFIX_STAGES * 8, given = open + 8;
    int first = blockIdx.x * 128, part = blockIdx.y, parts = gridDim.y;
    // Columns are shared out by 32, `units` of those at most to a block. Other blocks' results come to where this warpgroup's
    // queries were, a place for each block, 4 KiB for 32 columns; tops and sums to the end of it.
    int units = (8 + parts - 1) / parts;
    auto place = [&](int slot, int unit) {
        int k = slot * units + unit;
        return qs + group * TILE + k / 2 * 2 * TILE + k % 2 * 4096 + threadIdx.x % 128 * 16;
    };
    u32 stats = qs + 6 * TILE + group * TILE + (warp * 8 + g) * 16;
    int end = *valid; // there since before the kernel before has begun
    if (threadIdx.x == 0) {
        ready(&q);
        ready(&k);
        ready(&v);
        for (int i = 0; i < 4 + PREFIX_STAGES; i++) gate_init(begun + i * 8, 1);
        for (int i = 0; i < PREFIX_STAGES; i++) gate_init(empty + i * 8, 8); // a warp each
        gate_init(open, (parts - 1) * 8);
        gate_init(given, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        int mine = 0;
        for (int u = 0; u < 8; u++) mine += u * parts / 8 == part;
        gate_expect(given, (parts - 1) * (mine * 8192 + 1024));
    }
    cluster_sync();
    wait_for_previous();
    int tiles = (end + 63) / 64, begin = part * tiles / parts, count = (part + 1) * tiles / parts - begin;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 288 && is_elected()) {
            u16 own = 1 << part, all = (1 << parts) - 1;
            for (int i = 0; i < 4; i++) {
                gate_expect(begun + i * 8, (count > 0 ? 3 : 2) * TILE);
                if (i % parts == part) fetch(qs + i * 2 * TILE, &q, begun + i * 8, i * 64, first, all);
                if (count > 0) fetch(ring + i * TILE, &k, begun + i * 8, i * 64, begin * 64, own);
            }
            gate_expect(full, 0); // the first keys have come by other gates
            // In the order in which they are wanted: keys, and values a tile later.
            Turn<PREFIX_STAGES> turn;
            turn.next();
            auto tile = [&](const Map* from, int j) {
                if (turn.round > 0) gate_wait(empty + turn.stage * 8, (turn.round - 1) % 2);
                gate_expect(full + turn.stage * 8, 4 * TILE);
#pragma unroll
                for (int i = 0; i < 4; i++) fetch(ring + (turn.stage * 4 + i) * TILE, from, full + turn.stage * 8, i * 64, (begin + j) * 64, own);
                turn.next();
            };
            for (int j = 1; j <= count; j++) {
                if (j < count) tile(&k, j);
                tile(&v, j - 1);
            }
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        float o[128], top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < 128; i++) o[i] = 0.0f;
        float s[32];
        u32 p[16];
        Turn<PREFIX_STAGES> turn;
        auto tell = [&](int done) {
            if (lane == 0) gate_arrive_at(empty + done * 8);
        };
        // Asks for a tile's scores.
        auto ask = [&](bool is_first) {
            if (!is_first) gate_wait(full + turn.stage * 8, turn.round % 2);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 16; i++) {
                if (is_first && i % 4 == 0) gate_wait(begun + i / 4 * 8, 0);
                u32 a = qs + (i / 4 * 2 + group) * TILE + i % 4 * 32, b = ring + (turn.stage * 4 + i / 4) * TILE + i % 4 * 32;
                wgmma_64(s, operand(a, 16, 1024), operand(b, 16, 1024), i > 0);
            }
            wgmma_commit();
        };
        // Asks for a tile's values, times what its scores have become.
        auto add = [&] {
            gate_wait(full + turn.stage * 8, turn.round % 2);
#pragma unroll
            for (int i = 0; i < 4; i++)
                wgmma_256_ra(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], operand(ring + turn.stage * 4 * TILE + i * 2048, TILE, 1024), 1);
            wgmma_commit();
        };
        // Scores to numerators; how much those before shrink.
        float shrink[2];
        auto weigh = [&](int j) {
            j += begin;
            if (j == tiles - 1)
#pragma unroll
                for (int i = 0; i < 32; i++)
                    if (j * 64 + i / 4 * 8 + c * 2 + i % 2 >= end) s[i] = -1e30f;
            float most[2] = {-1e30f, -1e30f};
#pragma unroll
            for (int i = 0; i < 32; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                most[e] = fmaxf(top[e], quad_max(most[e]) * scale);
                shrink[e] = power_of_2(top[e] - most[e]);
                top[e] = most[e];
                sum[e] *= shrink[e];
            }
#pragma unroll
            for (int i = 0; i < 32; i++) {
                s[i] = power_of_2(fmaf(s[i], scale, -top[i / 2 % 2]));
                sum[i / 2 % 2] += s[i];
            }
        };
        auto pack = [&] {
#pragma unroll
            for (int i = 0; i < 16; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
        };
        // One warpgroup after the other asks. A warpgroup has asked when the last it asked for has begun, since its left operand
        // is in registers: then it is the other's turn. No branches: the compiler would wait for each instruction.
        auto my_turn = [&] {
            if (group == 0) asm volatile("bar.sync 2, 256;" ::: "memory");
            else asm volatile("bar.sync 3, 256;" ::: "memory");
        };
        auto your_turn = [&] {
            if (group == 0) asm volatile("bar.arrive 3, 256;" ::: "memory");
            else asm volatile("bar.arrive 2, 256;" ::: "memory");
        };
        if (group == 1) your_turn();
        if (count > 0) {
            my_turn();
            ask(true);
            your_turn();
            wgmma_wait<0>();
            tell(turn.stage);
            turn.next();
            weigh(0);
            pack();
            // The softmax of a tile while the values of the one before are multiplied.
            for (int n = 1; n < count; n++) {
                my_turn();
                ask(false);
                int asked = turn.stage;
                turn.next();
                add();
                int added = turn.stage;
                turn.next();
                your_turn();
                wgmma_wait<1>();
                tell(asked);
                weigh(n);
                wgmma_wait<0>();
                tell(added);
#pragma unroll
                for (int i = 0; i < 128; i++) o[i] *= shrink[i / 2 % 2];
                pack();
            }
        } else {
            for (int i = 0; i < 4; i++) gate_wait(begun + i * 8, 0);
        }
        // No queries are needed any more: others may write there.
        if (lane < parts && lane != part) gate_arrive(open, lane);
        if (count > 0) {
            wgmma_fence();
            add();
            turn.next();
            wgmma_wait<0>();
        }
        if (group == 0) asm volatile("bar.arrive 2, 256;" ::: "memory"); // for the turn that it does not take
        let_next_start();
        // The means of this part to the blocks whose columns they are, in 16 bits: 8 times finer than bf16, as which the sum is
        // stored. Its own ones to the stage that would be filled next.
        float r[2], most[2] = {top[0], top[1]};
#pragma unroll
        for (int e = 0; e < 2; e++) {
            sum[e] = quad_sum(sum[e]);
            r[e] = sum[e] > 0.0f ? 1.0f / sum[e] : 0.0f;
        }
        u32 own = ring + turn.stage * 4 * TILE + threadIdx.x * 16;
        if (turn.round > 0) gate_wait(empty + turn.stage * 8, (turn.round - 1) % 2);
        gate_wait(open, 0);
        int local = 0;
#pragma unroll
        for (int u = 0; u < 8; u++) {
            int owner = u * parts / 8;
            local = u > 0 && owner == (u - 1) * parts / 8 ? local + 1 : 0;
            float w[8];
#pragma unroll
            for (int i = 0; i < 8; i++) w[i] = __uint_as_float(pack_f16(o[u * 16 + i * 2] * r[i % 2], o[u * 16 + i * 2 + 1] * r[i % 2]));
            float4 x = make_float4(w[0], w[1], w[2], w[3]), y = make_float4(w[4], w[5], w[6], w[7]);
            if (owner == part) {
                put_4(own + local * 8192, x);
                put_4(own + local * 8192 + 4096, y);
            } else {
                u32 to = in_block(place(part - (part > owner), local), owner), gate = in_block(given, owner);
                push4(to, x, gate);
                push4(to + 2048, y, gate);
            }
        }
        if (c == 0)
#pragma unroll 1
            for (int i = 0; i < parts; i++)
                if (i != part) push4(in_block(stats + (part - (part > i)) * 512, i), make_float4(top[0], sum[0], top[1], sum[1]), in_block(given, i));
        gate_wait(given, 0);
        // What each part counts for.
        float theirs[PREFIX_PARTS - 1][2][2], all[2], mine[2];
#pragma unroll
        for (int i = 0; i < PREFIX_PARTS - 1; i++) {
            float4 x = make_float4(-1e30f, 0.0f, -1e30f, 0.0f);
            if (i < parts - 1) x = get_4(stats + i * 512);
            theirs[i][0][0] = x.x, theirs[i][0][1] = x.y, theirs[i][1][0] = x.z, theirs[i][1][1] = x.w;
#pragma unroll
            for (int e = 0; e < 2; e++) most[e] = fmaxf(most[e], theirs[i][e][0]);
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            all[e] = mine[e] = sum[e] * power_of_2(top[e] - most[e]);
#pragma unroll
            for (int i = 0; i < PREFIX_PARTS - 1; i++) all[e] += theirs[i][e][0] = theirs[i][e][1] * power_of_2(theirs[i][e][0] - most[e]);
            all[e] = 1.0f / all[e];
            mine[e] *= all[e];
#pragma unroll
            for (int i = 0; i < PREFIX_PARTS - 1; i++) theirs[i][e][0] *= all[e];
        }
        // Instructions that are new to the multiprocessor come slowly: a short loop.
        int row = first + group * 64 + warp * 16 + g;
        local = 0;
#pragma unroll 1
        for (int u = 0; u < 8; u++) {
            if (u * parts / 8 != part) continue;
            float x[16] = {};
            auto take = [&](u32 from, u32 apart, float w0, float w1) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float4 y = get_4(from + h * apart);
                    float words[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float a, b;
                        unpack_f16(__float_as_uint(words[i]), a, b);
                        x[h * 8 + i * 2] += a * (i % 2 ? w1 : w0);
                        x[h * 8 + i * 2 + 1] += b * (i % 2 ? w1 : w0);
                    }
                }
            };
            take(own + local * 8192, 4096, mine[0], mine[1]);
#pragma unroll
            for (int i = 0; i < PREFIX_PARTS - 1; i++)
                if (i < parts - 1) take(place(i, local), 2048, theirs[i][0][0], theirs[i][1][0]);
            local++;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int to = row + e * 8;
                u32 words[4];
#pragma unroll
                for (int n = 0; n < 4; n++) words[n] = packed(x[n * 4 + e * 2], x[n * 4 + e * 2 + 1], inverse);
                turn_quad(words, lane);
                if (to < rows) {
                    size_t at = (size_t)to * 256 + u * 32 + c * 8;
                    if (inverse == 0.0f) *(uint4*)((u16*)out + at) = make_uint4(words[0], words[1], words[2], words[3]);
                    else *(uint2*)((u8*)out + at) = make_uint2(words[0] | words[1] << 16, words[2] | words[3] << 16);
                }
            }
        }
        __syncwarp();
    }
#endif
}
