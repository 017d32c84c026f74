// Tiles of matrix products on Hopper: a block's 128 rows of x and N rows of W come in steps of 128 bytes of k into a ring of
// shared memory, STAGES steps long, which two warpgroups multiply from, 64 rows each. Clusters of ROWS_ x COLUMNS blocks
// share what they fetch. bf16, or e4m3 if E4M3 is set.

#if __CUDA_ARCH__ == 900
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
#ifdef E4M3
#define OPERAND_BYTES 1
#define NUMBERS "k32.f32.e4m3.e4m3 "
#define AS_THEY_LIE ""
#else
#define OPERAND_BYTES 2
#define NUMBERS "k16.f32.bf16.bf16 "
#define AS_THEY_LIE ", 0, 0"
#endif
#define PRODUCT(N, COUNT, TEXT, OPERANDS, A, B, P)                                                                          \
    __device__ __forceinline__ void multiply(float (&d)[COUNT], u64 a, u64 b, int more) {                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #N NUMBERS "{" TEXT "}, " A ", " B ", p, 1, 1" AS_THEY_LIE ";\n}\n" \
                     : OPERANDS : "l"(a), "l"(b), "r"(more));                                                              \
    }
#define O64 E(0), E(1), E(2), E(3)
PRODUCT(64, 32, T0 ", " T1 ", " T2 ", " T3, O64, "%32", "%33", "%34")
#define O96 E(0), E(1), E(2), E(3), E(4), E(5)
PRODUCT(96, 48, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5, O96, "%48", "%49", "%50")
#define O128 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7)
PRODUCT(128, 64, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7, O128, "%64", "%65", "%66")
#define O144 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8)
PRODUCT(144, 72, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8, O144, "%72", "%73", "%74")
#define O160 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9)
PRODUCT(160, 80, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9, O160, "%80", "%81", "%82")
// Of 168 and 184 columns: ten and a half, eleven and a half.
#define O168 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
PRODUCT(168, 84, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", %80, %81, %82, %83", O168, "%84", "%85", "%86")
#define O184 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
PRODUCT(184, 92, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", %88, %89, %90, %91", O184, "%92", "%93", "%94")
#define O208 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12)
PRODUCT(208, 104, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12, O208, "%104", "%105", "%106")
// Thirteen and a half.
#define O216 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
PRODUCT(216, 108, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12 ", %104, %105, %106, %107", O216, "%108", "%109", "%110")
#define O256 E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8), E(9), E(10), E(11), E(12), E(13), E(14), E(15)
PRODUCT(256, 128, T0 ", " T1 ", " T2 ", " T3 ", " T4 ", " T5 ", " T6 ", " T7 ", " T8 ", " T9 ", " T10 ", " T11 ", " T12 ", " T13 ", " T14 ", " T15, O256, "%128", "%129", "%130")

template <int N> __device__ __forceinline__ void warpgroup_sync(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(N) : "memory"); }
// Shared memory: these keep their order and that of barriers among themselves; global memory is none of theirs.
__device__ __forceinline__ void put(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x)); }
__device__ __forceinline__ void put_2(u32 at, float a, float b) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b)); }
__device__ __forceinline__ float2 get_2(u32 at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at));
    return x;
}
// Here and now: neither earlier nor when it is used.
__device__ __forceinline__ float4 read_4(const float* from) {
    float4 x;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from) : "memory");
    return x;
}
// Without a branch: one would end what the compiler puts in order, and each store's values would wait for those before.
__device__ __forceinline__ void write_if(bool is, void* to, uint4 x) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.v4.b32 [%1], {%2, %3, %4, %5};\n}\n" ::"r"((int)is), "l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
__device__ __forceinline__ uint4 get(u32 at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at));
    return x;
}

// Where a block is in its cluster, and the tiles that there are; HIGH rows and WIDE columns of y each.
template <int ROWS_, int COLUMNS, int WIDE, int HIGH = 128, int SPLIT = 1> struct Place {
    // SPLIT > 1, clusters that share out k, too: which part this block has, the first of the blocks with that part, its first step.
    int part_of, mates, begin = 0;
    int row_of, column_of, rows_m, all;
    bool is_padding = false; // its columns are beyond W: there is nothing to fetch of it, or to finish
    __device__ __forceinline__ Place(int rows, int columns) {
        int rank = SPLIT > 1 ? blockIdx.y % (ROWS_ * COLUMNS) : blockIdx.y;
        part_of = SPLIT > 1 ? blockIdx.y / (ROWS_ * COLUMNS) : 0;
        mates = blockIdx.y - rank;
        row_of = rank % ROWS_;
        column_of = rank / ROWS_;
        rows_m = (rows + ROWS_ * HIGH - 1) / (ROWS_ * HIGH);
        all = rows_m * (((columns + WIDE - 1) / WIDE + COLUMNS - 1) / COLUMNS);
    }
    __device__ __forceinline__ int m(int tile) const { return (tile % rows_m * ROWS_ + row_of) * HIGH; } // first row
    __device__ __forceinline__ int n(int tile) const { return tile / rows_m * COLUMNS + column_of; }    // which columns
    // The first threads of a warpgroup tell whoever writes to this block's ring that a stage is free; where its gates are.
    __device__ __forceinline__ bool tells(int t) const { return t < ROWS_ + COLUMNS - 1; }
    __device__ __forceinline__ u32 tell(int t, u32 empty) const {
        int told = mates + (t < ROWS_ ? column_of * ROWS_ + t : (t - ROWS_ + (t - ROWS_ >= column_of)) * ROWS_ + row_of);
        return in_block(empty, tells(t) ? told : blockIdx.y);
    }
};

// One thread, elected, fetches all tiles of the block, W's rows at `at(tile, half)` by halves. W of the
// first AHEAD steps comes before the kernel before has ended. At first no more than WINDOW steps are on their way: what all
// blocks ask for at once would come to some of them late.
template <int N, int ROWS_, int COLUMNS, int STAGES, int AHEAD, int WINDOW = STAGES, class P, class At>
__device__ __forceinline__ void fetch_all(const Map& x, const Map& w, u32 ring, u32 full, u32 empty, int steps, const P& place, At at) {
    constexpr int STAGE = (128 + N) * 128, PART = 128 / COLUMNS, STEP = 128 / OPERAND_BYTES; // rows of x; elements of k
    ready(&x);
    u16 to_row = 0, to_column = 0; // x goes along the row, W along the column
    for (int c = 0; c < COLUMNS; c++) to_row |= 1 << (place.mates + c * ROWS_ + place.row_of);
    for (int r = 0; r < ROWS_; r++) to_column |= 1 << (place.mates + place.column_of * ROWS_ + r);
    int half = ROWS_ == 2 ? place.row_of : 0; // of W, which this block fetches; or both
    u32 x_part = place.column_of * PART * 128, w_part = 128 * 128 + half * (N / 2) * 128;
    auto fetch_w = [&](int row, int other, int s, int stage) {
        u32 to = ring + stage * STAGE + w_part;
        gate_expect(full + stage * 8, place.is_padding ? 128 * 128 : STAGE);
        if (place.is_padding) return;
        fetch(to, &w, full + stage * 8, (place.begin + s) * STEP, row, to_column);
        if (ROWS_ == 1) fetch(to + N / 2 * 128, &w, full + stage * 8, (place.begin + s) * STEP, other, to_column);
    };
    int ahead = steps < AHEAD ? steps : AHEAD;
    if ((int)blockIdx.x < place.all)
        for (int s = 0; s < ahead; s++) fetch_w(at(blockIdx.x, half), at(blockIdx.x, 1), s, s);
    wait_for_previous();
    Turn<STAGES> turn;
    for (int tile = blockIdx.x; tile < place.all; tile += gridDim.x) {
        int row = place.m(tile) + place.column_of * PART, w_row = at(tile, half), w_other = at(tile, 1);
        for (int s = 0; s < steps; s++, turn.next()) {
            if (WINDOW < STAGES && turn.round == 0 && turn.stage >= WINDOW) gate_wait(full + (turn.stage - WINDOW) * 8, 0);
            if (ahead > 0) {
                ahead--;
            } else {
                if (turn.round > 0) gate_wait(empty + turn.stage * 8, (turn.round - 1) % 2);
                fetch_w(w_row, w_other, s, turn.stage);
            }
            fetch(ring + turn.stage * STAGE + x_part, &x, full + turn.stage * 8, (place.begin + s) * STEP, row, to_row);
        }
    }
}

// One thread's part of one tile, step by step: `fetch_w(s, stage)`, of the first `ahead` steps before the kernel before has
// ended, and `fetch_x(s, stage)`.
template <int STAGES, class W, class X> __device__ __forceinline__ void fetch_tile(u32 empty, int steps, int ahead, W fetch_w, X fetch_x) {
    ahead = min(steps, ahead);
    for (int s = 0; s < ahead; s++) fetch_w(s, s);
    wait_for_previous();
    Turn<STAGES> turn;
    for (int s = 0; s < steps; s++, turn.next()) {
        if (s >= ahead) {
            if (turn.round > 0) gate_wait(empty + turn.stage * 8, (turn.round - 1) % 2);
            fetch_w(s, turn.stage);
        }
        fetch_x(s, turn.stage);
    }
}

// `multiply_stage(s, at)` at each step of a tile, with the stage at `at`. Threads that tell (see Place) say that a stage is free when its
// multiplications are done. `meanwhile()` while the last step is multiplied.
template <int STAGE, int STAGES, class F, class G>
__device__ __forceinline__ void multiply_steps(u32 ring, u32 full, bool tells, u32 tell, int steps, Turn<STAGES>& turn, F multiply_stage, G meanwhile) {
    u32 free = tell; // a stage back
    for (int s = 0; s < steps; s++, turn.next()) {
        gate_wait(full + turn.stage * 8, turn.round % 2);
        u32 at = ring + turn.stage * STAGE;
        wgmma_fence();
        multiply_stage(s, at);
        wgmma_commit();
        wgmma_wait<1>();
        if (s > 0 && tells) gate_arrive_at(free);
        free = tell + turn.stage * 8;
    }
    meanwhile();
    wgmma_wait<0>();
    if (tells) gate_arrive_at(free);
}

// A warpgroup's half of a tile.
template <int N, int STAGES, class G>
__device__ __forceinline__ void multiply_tile(float (&d)[N / 2], u32 ring, u32 full, bool tells, u32 tell, int steps, Turn<STAGES>& turn, int half, G meanwhile) {
    auto multiply_stage = [=, &d](int s, u32 at) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            multiply(d, operand(at + half * 64 * 128 + i * 32, 16, 1024), operand(at + 128 * 128 + i * 32, 16, 1024), (s | i) != 0);
    };
    multiply_steps<(128 + N) * 128>(ring, full, tells, tell, steps, turn, multiply_stage, meanwhile);
}
template <int N, int STAGES>
__device__ __forceinline__ void multiply_tile(float (&d)[N / 2], u32 ring, u32 full, bool tells, u32 tell, int steps, Turn<STAGES>& turn, int half) {
    multiply_tile<N>(d, ring, full, tells, tell, steps, turn, half, [] {});
}

// Two 64 rows of W, `apart` from each other, times all N rows of x: the other way round, columns of y by rows.
template <int N, int STAGE, int STAGES>
__device__ __forceinline__ void multiply_columns(float (&d)[N / 2], float (&e)[N / 2], u32 ring, u32 rows, u32 apart, u32 full, bool tells, u32 tell, int steps, Turn<STAGES>& turn) {
    multiply_steps<STAGE>(ring, full, tells, tell, steps, turn, [=, &d, &e](int s, u32 at) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u64 x = operand(at + i * 32, 16, 1024);
            multiply(d, operand(at + rows + i * 32, 16, 1024), x, (s | i) != 0);
            multiply(e, operand(at + rows + apart + i * 32, 16, 1024), x, (s | i) != 0);
        }
    }, [] {});
}

template <int ROWS_, int COLUMNS, int STAGES> __device__ __forceinline__ void open_gates(u32 full, u32 empty) {
    for (int s = 0; s < STAGES; s++) {
        gate_init(full + s * 8, 1);
        gate_init(empty + s * 8, (ROWS_ + COLUMNS - 1) * 2);
    }
}

// Where the residual stream's sums are, [blocks][rows] of (sum, sum of squares), and what is made of them.
struct Norm {
    const float2* sums; // null: x is taken as it is
    int blocks;
    float per_width;       // 1 / width
    const float* of_means; // W weights: what the mean of a row adds to each column; null: the norm has no mean
};
// The other warps of the warpgroup that fetches get what follows the product: bias and part of means of columns `at(i)` to
// `vectors`, rows' factor and mean to `factors`; `part` of the product is wanted.
template <class At> __device__ __forceinline__ void fetch_vectors(u32 vectors, u32 factors, int n, int row, int rows, const float* bias, const Norm& norm, At at, float part = 1.0f) {
    for (int i = threadIdx.x - 32; i < n; i += 96) {
        int column = at(i);
        put_2(vectors + i * 8, bias[column] * part, norm.of_means ? norm.of_means[column] : 0.0f);
    }
    wait_for_previous();
    for (int i = threadIdx.x - 32; i < 128; i += 96) {
        float sum = 0.0f, squares = 0.0f, r = 1.0f;
        const float2* sums = norm.sums + min(row + i, rows - 1);
#pragma unroll 6
        for (int b = 0; b < norm.blocks; b++) {
            float2 s = sums[(size_t)b * rows];
            sum += s.x;
            squares += s.y;
        }
        float mean = norm.of_means ? sum * norm.per_width : 0.0f;
        if (norm.blocks > 0) r = rsqrtf(fmaxf(squares * norm.per_width - mean * mean, 0.0f) + 1e-6f);
        put_2(factors + i * 8, r * part, mean);
    }
}

// GELU(gate) * up of W = [gate; up]: blocks work on tiles one after the other. Three warps of the first warpgroup do what
// follows the product, of a tile that is handed to them in bf16, while the next one is multiplied; of the last one, all do.
// `follow` writes y: `begin` at a column, then `finish` row by row, if it counts, 8 columns from there on and, h = 1, 64
// further. block: 384.
#define GEGLU_PITCH (256 * 2 + 16)
template <int ROWS_, int COLUMNS, int STAGES, class Follow>
__device__ __forceinline__ void geglu_of(const Map& x, const Map& w, int rows, int columns, int steps, Follow follow) {
    constexpr int N = 256, WIDE = 128, STAGE = (128 + N) * 128;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), staging = ring + STAGES * STAGE;
    u32 full = staging + 128 * GEGLU_PITCH, empty = full + STAGES * 8, handed = empty + STAGES * 8, taken = handed + 8;
    int group = threadIdx.x / 128, t = threadIdx.x % 128;
    Place<ROWS_, COLUMNS, WIDE> place(rows, columns);
    if (threadIdx.x == 0) {
        open_gates<ROWS_, COLUMNS, STAGES>(full, empty);
        gate_init(handed, 256);
        gate_init(taken, 96);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    auto arrive = [](u32 gate) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(gate) : "memory"); };
    auto is_last = [&](int tile) { return tile + (int)gridDim.x >= place.all; };
    // Every `step`-th row; 8 threads per row, each with 8 columns in either half.
    auto finish = [&](int tile, int count, int row, int step) {
        int top = place.m(tile), lane = t % 8;
        follow.begin(place.n(tile) * WIDE + lane * 8);
        gate_wait(handed, count % 2);
        for (; row < 128; row += step) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 at = staging + row * GEGLU_PITCH + (h * 64 + lane * 8) * 2;
                uint4 gates = get(at), ups = get(at + WIDE * 2);
                follow.finish(h, gates, ups, top + row, top + row < rows);
            }
        }
    };
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
        if (t < 32) {
            if (is_elected())
                fetch_all<N, ROWS_, COLUMNS, STAGES, STAGES>(x, w, ring, full, empty, steps, place, [&](int tile, int h) { return h * columns + place.n(tile) * WIDE; });
            __syncwarp();
        } else {
            int count = 0;
            wait_for_previous();
            for (int tile = blockIdx.x; tile < place.all; tile += gridDim.x, count++) {
                finish(tile, count, t / 8 - 4, is_last(tile) ? 44 : 12);
                arrive(taken);
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
        int half = group - 1, warp = t / 32, g = t % 32 / 4, c = t % 4;
        u32 low = staging + (half * 64 + warp * 16 + g) * GEGLU_PITCH + c * 4, high = low + 8 * GEGLU_PITCH;
        u32 tell = place.tell(t, empty);
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        int count = 0, tile = blockIdx.x; // there is one at least
        for (; tile < place.all; tile += gridDim.x, count++) {
            float d[N / 2];
            multiply_tile<N, STAGES>(d, ring, full, place.tells(t), tell, steps, turn, half);
            if (count > 0) gate_wait(taken, (count - 1) % 2);
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                put(low + j * 16, pack_bf16(d[j * 4], d[j * 4 + 1]));
                put(high + j * 16, pack_bf16(d[j * 4 + 2], d[j * 4 + 3]));
            }
            arrive(handed);
        }
        finish(tile - gridDim.x, count - 1, 12 + half * 16 + t / 8, 44);
    }
    cluster_sync(); // nobody goes while others may still tell it something
}

// GELU, good to 2^-11: a hundredth of an e4m3 number's step, an eighth of a bf16's.
__device__ __forceinline__ float gelu_fast(float x) {
    float t, half = 0.5f * x;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(x * fmaf(0.035677408f, x * x, 0.79788456f)));
    return fmaf(half, t, half);
}

// The same where 128 rows would leave much of the last tile empty: tiles of HIGH rows of x, which are the columns of the
// matrix instruction, W its rows. A warpgroup has 64 columns of y, gate and up in the same thread. There is a multiple of as
// many clusters as tiles of rows, so that a block's tiles all are of the same rows of x: its steps go round and round k, and
// the second warpgroup begins and ends its tiles LATER steps after the first. What follows the product of one is done while
// the other has the tensor cores for itself.
#define LATER 3
#define COLUMNS_BYTES (64 * 128) // of 64 rows of W in a stage

// As `fetch_all`, one thread.
template <int HIGH, int ROWS_, int COLUMNS, int STAGES, class P>
__device__ __forceinline__ void fetch_turned(const Map& x, const Map& w, u32 ring, u32 full, u32 empty, int columns, int steps, int later, int count, const P& place) {
    // Of the rows of x, two blocks side by side both fetch what is in the middle: halves would not begin where the swizzled
    // pattern does. Of W, one of two blocks above each other fetches gate, the other up.
    constexpr int STAGE = (HIGH + 256) * 128, PART = (HIGH / COLUMNS + 7) / 8 * 8, STEP = 128 / OPERAND_BYTES;
    static_assert(ROWS_ <= 2 && COLUMNS <= 2, "who fetches what");
    ready(&x);
    int first = place.n(blockIdx.x) * 128, apart = gridDim.x / place.rows_m * COLUMNS * 128; // this block's columns; from tile to tile
    int x_first = place.column_of * (HIGH - PART), row = place.m(blockIdx.x) + x_first;
    u16 to_row = 0, to_column = 0;
    for (int c = 0; c < COLUMNS; c++) to_row |= 1 << (c * ROWS_ + place.row_of);
    for (int r = 0; r < ROWS_; r++) to_column |= 1 << (place.column_of * ROWS_ + r);
    auto fetch_w = [&](int i, int s, int stage) {
        bool is_first = i < count, is_second = s >= later || i > 0; // which warpgroups have a tile
        u32 gate = full + stage * 8, to = ring + stage * STAGE + HIGH * 128;
        gate_expect(gate, COLUMNS * PART * 128 + (is_first + is_second) * 2 * COLUMNS_BYTES);
        int at = first + i * apart, second = at + 64 - (s < later ? apart : 0);
#pragma unroll
        for (int up = 0; up < 2; up++) { // gate, up
            if (ROWS_ == 2 && up != place.row_of) continue;
            if (is_first) fetch(to + up * COLUMNS_BYTES, &w, gate, s * STEP, up * columns + at, to_column);
            if (is_second) fetch(to + (2 + up) * COLUMNS_BYTES, &w, gate, s * STEP, up * columns + second, to_column);
        }
    };
    int ahead = min(steps, 2); // x does not stand in line behind the W of all steps
    for (int s = 0; s < ahead; s++) fetch_w(0, s, s);
    wait_for_previous();
    Turn<STAGES> turn;
    for (int i = 0; i <= count; i++)
        for (int s = 0; s < (i < count ? steps : later); s++, turn.next()) {
            if (ahead > 0) {
                ahead--;
            } else {
                if (turn.round > 0) gate_wait(empty + turn.stage * 8, (turn.round - 1) % 2);
                fetch_w(i, s, turn.stage);
            }
            fetch(ring + turn.stage * STAGE + x_first * 128, &x, full + turn.stage * 8, s * STEP, row, to_row);
        }
}

// `follow` writes y: `begin` at the first of a thread's two columns, 8 apart, then `finish` all rows. block: 384.
template <int HIGH, int ROWS_, int COLUMNS, int STAGES, class Follow>
__device__ __forceinline__ void geglu_turned(const Map& x, const Map& w, int rows, int columns, int steps, Follow follow) {
    constexpr int STAGE = (HIGH + 256) * 128;
    extern __shared__ __align__(1024) unsigned char room[];
    u32 ring = address_of(room), full = ring + STAGES * STAGE, empty = full + STAGES * 8;
    Place<ROWS_, COLUMNS, 128, HIGH> place(rows, columns);
    int later = min(LATER, steps), count = (place.all - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x; // tiles of this block
    if (threadIdx.x == 0) {
        open_gates<ROWS_, COLUMNS, STAGES>(full, empty);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 32) {
            if (is_elected()) fetch_turned<HIGH, ROWS_, COLUMNS, STAGES>(x, w, ring, full, empty, columns, steps, later, count, place);
            __syncwarp();
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int t = threadIdx.x % 128, half = threadIdx.x / 128 - 1;
        bool tells = place.tells(t);
        u32 tell = place.tell(t, empty);
        wait_for_previous();
        let_next_start();
        Turn<STAGES> turn;
        if (half == 1)
            for (int s = 0; s < later; s++, turn.next()) // not for this warpgroup
                if (tells) { // the others do not look: they could be too late, when the stage is filled again
                    gate_wait(full + turn.stage * 8, 0);
                    gate_arrive_at(tell + turn.stage * 8);
                }
        int column = place.n(blockIdx.x) * 128 + half * 64 + t / 32 * 16, top = place.m(blockIdx.x), apart = gridDim.x / place.rows_m * COLUMNS * 128;
        for (; count > 0; count--, column += apart) {
            float gate[HIGH / 2], up[HIGH / 2];
            follow.begin(column + t % 32 / 4);
            multiply_columns<HIGH, STAGE>(gate, up, ring, HIGH * 128 + half * 2 * COLUMNS_BYTES, COLUMNS_BYTES, full, tells, tell, steps, turn);
            follow.finish(gate, up, column, top, rows, t % 32 / 4, t % 4);
        }
    }
    cluster_sync(); // nobody goes while others may still tell it something
}
#endif
