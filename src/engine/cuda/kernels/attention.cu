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
// Two floats to elements `at` and the next of `out`: bf16, or e4m3 times `inverse` if that is not 0.
__device__ __forceinline__ void store_two(void* out, size_t at, float a, float b, float inverse) {
    if (inverse == 0.0f) {
        *(u32*)((u16*)out + at) = pack_bf16(a, b);
    } else {
#if __CUDA_ARCH__ >= 890
        u16 r;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(b * inverse), "f"(a * inverse));
        *(u16*)((u8*)out + at) = r;
#endif
    }
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
#define MAP const __grid_constant__ Map
#else
struct Map;
#define MAP const Map*
#endif

// Gemma's prefix: heads of 256 that share keys and values, so that queries are rows [rows, 256] over k, v [keys, 256].
// Keys from *valid on do not count. A block has 64 queries; its two warpgroups take turns at 64 keys each and add up what
// they found, so that one multiplies while the other one exponentiates. Keys and values would come too slowly for one
// block: a cluster's two blocks, which have different queries, bring one half each to both. What lies beyond the keys
// that count is finite. grid: (rows / 128 rounded up, 2), block 384: the last warpgroup only fetches. scale includes log2 e.
// Hopper only.
#define TILE 8192 // bytes of 64 rows x 64 columns
extern "C" __global__ __launch_bounds__(384, 1) void prefix_attention(MAP q, MAP k, MAP v, void* out, const int* valid, int rows, float scale,
        float inverse) {
#if __CUDA_ARCH__ == 900
    extern __shared__ uint4 room[];
    int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    // Queries, then each group's two sets of values and one of keys.
    u32 qs = (shared_address(room) + 1023) / 1024 * 1024, gates = qs + 28 * TILE;
    auto values = [&](int of, int turn) { return qs + (4 + of * 12 + turn * 4) * TILE; };
    auto keys = [&](int of) { return qs + (12 + of * 12) * TILE; };
    // What has come: queries, values of a group and turn, keys of a group; then what both blocks have done with.
    auto values_came = [&](int of, int turn) { return gates + (1 + of * 2 + turn) * 8; };
    auto keys_came = [&](int of) { return gates + (5 + of) * 8; };
    u32 done = 6 * 8;
    int first = (blockIdx.x * 2 + blockIdx.y) * 64;
    if (threadIdx.x == 0) {
        ready(&q);
        ready(&k);
        ready(&v);
        for (int i = 0; i < 7; i++) gate_init(gates + i * 8, 1);
        for (int i = 7; i < 13; i++) gate_init(gates + i * 8, 8); // a warp of a group of either block each
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    wait_for_previous();
    int end = *valid, tiles = (end + 63) / 64;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 288 && is_elected()) {
            auto half = [&](u32 to, const Map* from, u32 gate, int j) {
                gate_expect(gate, 4 * TILE);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int box = blockIdx.y * 2 + i;
                    fetch(to + box * TILE, from, gate, box * 64, j * 64, 3);
                }
            };
            gate_expect(gates, 4 * TILE);
            for (int i = 0; i < 4; i++) fetch(qs + i * TILE, &q, gates, i * 64, first, 1 << blockIdx.y);
            // In the order in which places become free: keys once their scores are there, values a softmax later.
            for (int j = 0; j <= tiles; j++) {
                int of = j % 2, n = j / 2; // the group's n-th
                if (j < tiles) {
                    if (n >= 1) gate_wait(keys_came(of) + done, (n - 1) % 2);
                    half(keys(of), &k, keys_came(of), j);
                }
                if (j == 0) continue;
                of = (j - 1) % 2, n = (j - 1) / 2;
                if (n >= 2) gate_wait(values_came(of, n % 2) + done, (n / 2 - 1) % 2);
                half(values(of, n % 2), &v, values_came(of, n % 2), j - 1);
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
        // Asks for the scores of the group's n-th tile.
        auto ask = [&](int n) {
            gate_wait(keys_came(group), n % 2);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 16; i++) {
                u32 at = i / 4 * TILE + i % 4 * 32;
                wgmma_64(s, operand(qs + at, 16, 1024), operand(keys(group) + at, 16, 1024), i > 0);
            }
            wgmma_commit();
        };
        // Asks for the n-th tile's values, times what its scores have become.
        auto add = [&](int n) {
            gate_wait(values_came(group, n % 2), n / 2 % 2);
#pragma unroll
            for (int i = 0; i < 4; i++)
                wgmma_256_ra(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], operand(values(group, n % 2) + i * 2048, TILE, 1024), 1);
            wgmma_commit();
        };
        // Scores to numerators; how much those before shrink.
        float shrink[2];
        auto weigh = [&](int n) {
            int j = n * 2 + group;
            if (lane < 2) gate_arrive(keys_came(group) + done, lane);
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
        int count = (tiles - group + 1) / 2; // of this group
        gate_wait(gates, 0);
        if (count > 0) {
            ask(0);
            wgmma_wait<0>();
            weigh(0);
            pack();
            // The softmax of a tile while the values of the one before are multiplied.
            for (int n = 1; n < count; n++) {
                ask(n);
                add(n - 1);
                wgmma_wait<1>();
                weigh(n);
                wgmma_wait<0>();
                if (lane < 2) gate_arrive(values_came(group, (n - 1) % 2) + done, lane);
#pragma unroll
                for (int i = 0; i < 128; i++) o[i] *= shrink[i / 2 % 2];
                pack();
            }
            wgmma_fence();
            add(count - 1);
            wgmma_wait<0>();
        }
        let_next_start();
        // The second group's results through shared memory.
        auto both_sync = [&] { asm volatile("bar.sync 1, 256;" ::: "memory"); };
        both_sync();
        float* given = (float*)((char*)room + (qs - shared_address(room))) + threadIdx.x % 128;
        if (group == 1) {
#pragma unroll
            for (int i = 0; i < 128; i++) given[i * 128] = o[i];
#pragma unroll
            for (int e = 0; e < 2; e++) given[(128 + e) * 128] = top[e], given[(130 + e) * 128] = sum[e];
        }
        both_sync();
        if (group == 0) {
            float mine[2], theirs[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float other = given[(128 + e) * 128], most = fmaxf(top[e], other);
                mine[e] = power_of_2(top[e] - most);
                theirs[e] = power_of_2(other - most);
                float r = 1.0f / (quad_sum(sum[e]) * mine[e] + quad_sum(given[(130 + e) * 128]) * theirs[e]);
                mine[e] *= r;
                theirs[e] *= r;
            }
            int row = first + warp * 16 + g;
            size_t to = (size_t)row * 256 + c * 2;
#pragma unroll
            for (int n = 0; n < 32; n++) {
                float t[4];
#pragma unroll
                for (int e = 0; e < 4; e++) t[e] = o[n * 4 + e] * mine[e / 2] + given[(n * 4 + e) * 128] * theirs[e / 2];
                if (row < rows) store_two(out, to + n * 8, t[0], t[1], inverse);
                if (row + 8 < rows) store_two(out, to + 8 * 256 + n * 8, t[2], t[3], inverse);
            }
        }
        __syncwarp();
    }
    cluster_sync(); // nobody goes while the other block may still tell or bring it something
#endif
}
