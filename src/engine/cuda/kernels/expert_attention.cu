// The attention of the expert in bf16, after `expert.cu`: all heads' queries over the prefix's keys and their own.

// Two values as bf16, in the bits of one.
__device__ __forceinline__ float two(float lo, float hi) { return __uint_as_float(pack_bf16(lo, hi)); }

// From the cache that all multiprocessors share: what the kernel before has written while this one was there already.
__device__ __forceinline__ uint4 fresh(const u16* p) { return __ldcg((const uint4*)p); }

// Attention of all heads' queries over one share of the keys. Block: 8 warps = 2 tiles of 16 query rows x 4 groups of
// 32 keys. grid: (rows / 32, keys / 128), rounded up. q is scaled. k [keys, dim], vt [dim, ld]; padding is finite.
// Cluster: all shares of the keys, at most 8; each block then finishes some of the rows. out: fragments [tokens, heads * dim].
extern "C" __global__ __launch_bounds__(256) void expert_attention(const u16* q, const u16* k, const u16* vt, u16* out_rows,
        const int* valid, int heads, int rows, int prefix, int keys, int ld, const char* next, int kilobytes) {
#if __CUDA_ARCH__ > 900
    float* shared = (float*)::shared; // [4 groups][32 rows][dim + 4] numerators
    __shared__ float tops[4][32], sums[4][32], all_top[32], all_sum[32];
    const int dim = HEAD_DIM, pitch = dim + 4;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int tile = warp % 2, group = warp / 2;
    int row = blockIdx.x * 32 + tile * 16 + g;
    int key0 = blockIdx.y * 128 + group * 32;
    ask_for(next, kilobytes);
    {
        // The prefix's keys and values left the cache since the last step.
        int i = threadIdx.x;
        const u16* line = i < 128 ? k + (size_t)(blockIdx.y * 128 + i) * dim : vt + (size_t)(i - 128) * 2 * ld + blockIdx.y * 128;
        int step = i < 128 ? 64 : ld;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u16* at = i < 128 ? line + j * step : line + j / 2 * step + j % 2 * 64;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
        }
    }
    let_next_start();
    wait_for_previous();
    int end = *valid;
    // Logits: four tiles of 8 keys; column j of tile i is key (j / 2) * 8 + 2 i + j % 2, so that lane c ends up with keys 8 c .. 8 c + 7.
    float s[4][4] = {};
    const u16* q0 = q + (size_t)min(row, rows - 1) * dim + c * 8;
    const u16* q1 = q + (size_t)min(row + 8, rows - 1) * dim + c * 8;
    const u16* ks = k + (size_t)(key0 + g / 2 * 8 + g % 2) * dim + c * 8;
#pragma unroll
    for (int d = 0; d < dim / 32; d++) {
        uint4 f = fresh(q0 + d * 32), h = fresh(q1 + d * 32);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 t = fresh(ks + (size_t)2 * i * dim + d * 32);
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
        uint4 t = fresh(vs + (size_t)n * 8 * ld);
        float o[4] = {};
        mma(o, p[0][0], p[0][1], p[1][0], p[1][1], t.x, t.y);
        mma(o, p[2][0], p[2][1], p[3][0], p[3][1], t.z, t.w);
        *(float2*)(out + g * pitch + n * 8 + c * 2) = make_float2(o[0], o[1]);
        *(float2*)(out + (g + 8) * pitch + n * 8 + c * 2) = make_float2(o[2], o[3]);
    }
    __syncthreads();
    // The groups' numerators on one scale, in a fixed order, in place of the first group's: a warp takes 4 rows.
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int local = warp * 4 + r;
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
            *(float4*)(shared + (size_t)local * pitch + e * 4) = o;
        }
        if (lane == 0) {
            all_top[local] = t;
            all_sum[local] = all;
        }
    }
    cluster_arrive();
    cluster_wait();
    // The shares on one scale: this block finishes rows blockIdx.y, blockIdx.y + shares, ...
    int shares = gridDim.y;
    for (int local = blockIdx.y + threadIdx.x / (dim / 4) * shares; local < 32; local += 256 / (dim / 4) * shares) {
        int e = threadIdx.x % (dim / 4) * 4, global = blockIdx.x * 32 + local;
        float t = -1e30f, all = 0.0f;
        for (int s = 0; s < shares; s++) t = fmaxf(t, load_of_rank(all_top + local, s));
        float4 o = {};
        for (int s = 0; s < shares; s++) {
            float w = __expf(load_of_rank(all_top + local, s) - t);
            float4 y = load4_of_rank(shared + (size_t)local * pitch + e, s);
            all += w * load_of_rank(all_sum + local, s);
            o.x += w * y.x; o.y += w * y.y; o.z += w * y.z; o.w += w * y.w;
        }
        float r = 1.0f / all;
        if (global < rows)
            *(uint2*)(out_rows + fragment(global / heads, global % heads * dim + e)) = make_uint2(pack_bf16(o.x * r, o.y * r), pack_bf16(o.z * r, o.w * r));
    }
    cluster_arrive();
    cluster_wait();
#endif
}

// The same on Hopper, with its matrix instructions: 64 rows and 64 keys per block. q: as `query` has it. v [keys, dim].
// scale: log2 e (q is scaled already). grid: (rows / 64 rounded up, 16), cluster 16: each block then finishes 4 rows.
// block: 128. The action tokens' own keys and values lie as `query` has it, too. The kernel before has made them: the
// cluster's last blocks share them out, 8 by 8, since one that had all of them would take in twice as much as the others.
#define TILE 8192 // bytes of 64 rows x 64 columns
extern "C" __global__ __launch_bounds__(128) void expert_attention_90(const u16* q, const u16* k, const u16* v, u16* out,
        const int* valid, int heads, int rows, int prefix, int keys, float scale, const u16* own_k, const u16* own_v) {
#if __CUDA_ARCH__ == 900
    __shared__ __align__(8) float statistics[4][16][2]; // [row][share]: maximum, denominator
    __shared__ __align__(8) u64 together, told, came[4], own_values;
    u32 base = (local_address(shared) + 1023) / 1024 * 1024, qs = base, ks = qs + 4 * TILE, vs = ks + 4 * TILE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int first = blockIdx.x * 64, rank = blockIdx.y, tiles = (prefix + TOKENS + 63) / 64, shares = min(tiles, 16);
    // 64 rows of keys or values, swizzled like queries. What lies beyond the rows that count is finite.
    u32 to_even = lane / 8 * TILE + warp * 128 + (lane % 8 ^ warp) * 16, to_odd = lane / 8 * TILE + (warp + 4) * 128 + (lane % 8 ^ warp + 4) * 16;
    auto load = [&](u32 to, const u16* from, int row) {
        const u16* source = from + (size_t)(row + warp) * 256 + lane * 8;
#pragma unroll
        for (int i = 0; i < 16; i++)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + (i % 2 ? to_odd : to_even) + i / 2 * 1024), "l"(source + i * 1024) : "memory");
    };
    // A block's first tile ends with its part of the tokens' own keys. Before them, and in its other tiles, there are the
    // prefix's, in a tile from key_of(it) on.
    const int owners = min(shares, NT);
    auto own = [&](int block) { return NT * max(block - (shares - owners), 0) / owners * 8; };
    int own_first = own(rank), own_count = own(rank + 1) - own_first, prefix_rows = 64 - own_count;
    auto key_of = [&](int tile) { return tile * 64 - (tile > rank ? TOKENS : own_first); };
    if (threadIdx.x == 0) {
        expect(&together, 4 * shares * 512);
        expect(&told, 4 * shares * 8);
        if (rank < tiles) {
            for (int i = 0; i < 4; i++) expect(&came[i], TILE + own_count * 128);
            expect(&own_values, own_count * 512);
        }
    }
    __syncwarp();
    cluster_arrive_relaxed(); // all blocks have started
    // The prefix's keys and values have long been there.
    if (rank < tiles) {
        load(ks, k, key_of(rank));
        load(vs, v, key_of(rank));
    }
    if (!MANY) let_next_start();
    int end = *valid;
    asm volatile("cp.async.wait_all;" ::: "memory");
    fence_async();
    __syncthreads();
    const void* source = q + (size_t)first * 256 + warp * 4096;
    u32 to_queries = qs + warp * TILE, counted = local_address(came + warp);
    u32 to_own_keys = ks + warp * TILE + prefix_rows * 128, own_at = warp * 4096 + own_first * 64;
    have(to_queries, counted, source);
    cluster_wait();
    if (rank >= tiles) cluster_arrive_relaxed();
    wait_for_previous();
    if (rank < tiles && warp < ASKERS && is_elected()) {
#pragma unroll
        for (int i = 0; i < 4; i += ASKERS) {
            fetch<1>(to_queries + i * TILE, (const unsigned char*)source + i * TILE, TILE, counted + i * 8);
            if (own_count) fetch<1>(to_own_keys + i * TILE, own_k + own_at + i * 4096, own_count * 128, counted + i * 8);
        }
        if (own_count)
#pragma unroll
            for (int i = 0; i < 4; i += ASKERS)
                fetch<1>(to_own_keys + (4 + i) * TILE, own_v + own_at + i * 4096, own_count * 128, local_address(&own_values));
    }
    if (MANY) let_next_start();
    float o[128], top[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
    for (int j = rank; j < tiles; j += shares) {
        if (j > rank) {
            __syncthreads();
            load(ks, k, key_of(j));
            load(vs, v, key_of(j));
            asm volatile("cp.async.wait_all;" ::: "memory");
            fence_async();
            __syncthreads();
        }
        float s[32];
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            if (i % 4 == 0) wait_for_data(&came[i / 4]);
            u32 at = i / 4 * TILE + i % 4 * 32;
            wgmma_64(s, operand(qs + at, 16, 1024), operand(ks + at, 16, 1024), i > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        if (j + shares >= tiles) cluster_arrive_relaxed(); // queries have been read: others' numerators come to where they are
        float most[2] = {top[0], top[1]};
        int of_prefix = j > rank ? 64 : prefix_rows, count = end - key_of(j), of_own = of_prefix + keys - prefix - own_first;
        if (count < of_prefix || of_own < 64) // else all keys count
#pragma unroll
            for (int i = 0; i < 32; i++) {
                int at = i / 4 * 8 + c * 2 + i % 2;
                if (at < of_prefix ? at >= count : at >= of_own) s[i] = -1e30f;
            }
#pragma unroll
        for (int i = 0; i < 32; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            most[e] = fmaxf(most[e], __shfl_xor_sync(FULL, most[e], 1));
            most[e] = fmaxf(most[e], __shfl_xor_sync(FULL, most[e], 2));
            if (j > rank) {
                float shrink = power_of_2((top[e] - most[e]) * scale);
                sum[e] *= shrink;
#pragma unroll
                for (int i = 0; i < 64; i++) o[i / 2 * 4 + e * 2 + i % 2] *= shrink;
            }
            top[e] = most[e];
        }
        // Where no key counts, all powers are 0.
        float below[2] = {top[0] > -1e29f ? top[0] * scale : 0.0f, top[1] > -1e29f ? top[1] * scale : 0.0f};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            s[i] = power_of_2(s[i] * scale - below[i / 2 % 2]);
            sum[i / 2 % 2] += s[i];
        }
        if (j == rank) wait_for_data(&own_values);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float* t = s + i * 8;
            wgmma_256_ra(o, pack_bf16(t[0], t[1]), pack_bf16(t[2], t[3]), pack_bf16(t[4], t[5]), pack_bf16(t[6], t[7]),
                         operand(vs + i * 2048, TILE, 1024), i > 0 || j > rank);
        }
        wgmma_commit();
        if (j + shares >= tiles) // meanwhile whoever finishes a row is told what the numerators are to be divided by
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int owner = warp * 4 + e * 2 + g / 4;
                sum[e] = quad_sum(sum[e]);
                if (c == 0) push2(of_rank(statistics[g % 4][rank], owner), top[e], sum[e], of_rank(&told, owner));
            }
        wgmma_wait<0>();
    }
    cluster_wait();
    if (rank < tiles) {
        // Numerators: rows 4 i .. go to block i, of a row 16 bytes by 16 what a thread has: of columns 32 m + 2 c, the next,
        // and those 8, 16 and 24 further on.
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int owner = warp * 4 + e * 2 + g / 4;
            u32 barrier = of_rank(&together, owner), to = of_rank_address(qs + (rank * 4 + g % 4) * 512 + c * 16, owner);
#pragma unroll
            for (int m = 0; m < 8; m++) {
                float* x = o + m * 16 + e * 2;
                push4(to + m * 64, make_float4(two(x[0], x[1]), two(x[4], x[5]), two(x[8], x[9]), two(x[12], x[13])), barrier);
            }
        }
    }
    // A warp a row.
    int row = first + rank * 4 + warp;
    u16* to = out + fragment(row / heads, row % heads * 256 + g * 32) + c * 2;
    wait_for_data(&told);
    float t = lane < shares ? statistics[warp][lane][0] : -1e30f;
    float most = warp_max(t), w = lane < shares ? power_of_2((t - most) * scale) : 0.0f;
    w *= 1.0f / warp_sum(lane < shares ? w * statistics[warp][lane][1] : 0.0f);
    wait_for_data(&together);
    float x[8] = {};
#pragma unroll 4
    for (int i = 0; i < shares; i++) {
        u32 p[4];
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(p[0]), "=r"(p[1]), "=r"(p[2]), "=r"(p[3]) : "r"(qs + (i * 4 + warp) * 512 + lane * 16) : "memory");
        float wi = __shfl_sync(FULL, w, i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[2 * j] += wi * of_bf16(p[j] & 0xffff);
            x[2 * j + 1] += wi * of_bf16(p[j] >> 16);
        }
    }
    if (row < rows)
#pragma unroll
        for (int j = 0; j < 4; j++)
            *(u32*)(to + j * TOKENS * 8) = pack_bf16(x[2 * j], x[2 * j + 1]);
#endif
}
