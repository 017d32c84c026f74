// Hopper's tensor copy engine, and the gates that count what it has brought.

#if __CUDA_ARCH__ >= 900
// Into another block's shared memory, counted by its barrier.
__device__ __forceinline__ void push4(u32 at, float4 x, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier) : "memory");
}
#endif

#if __CUDA_ARCH__ == 900
struct __align__(64) Map { u64 words[16]; }; // as the driver encodes it
__device__ __forceinline__ u32 address_of(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void gate_init(u32 gate, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(gate), "r"(count) : "memory"); }
__device__ __forceinline__ void gate_expect(u32 gate, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(gate), "r"(bytes) : "memory");
}
__device__ __forceinline__ void gate_wait(u32 gate, u32 parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra.uni done;\nbra.uni again;\ndone:\n}\n" ::"r"(gate), "r"(parity) : "memory");
}
// A place in this block's shared memory as it is in another block of the cluster.
__device__ __forceinline__ u32 in_block(u32 address, u32 block) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
    return there;
}
// Arrives at a gate of any block of the cluster.
__device__ __forceinline__ void gate_arrive_at(u32 gate) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(gate) : "memory"); }
// Arrives at the same gate of another block of the cluster.
__device__ __forceinline__ void gate_arrive(u32 gate, u32 block) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(gate), "r"(block) : "memory");
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// One thread of a warp: that what it starts is started once, the compiler sees by this alone.
__device__ __forceinline__ bool is_elected() {
    u32 is;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(is));
    return is;
}
// Has a map near, before what it describes is there to be fetched: else the first copy waits for it too.
__device__ __forceinline__ void ready(const Map* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// A box at column x, row y of a matrix to the same place in all blocks of `blocks`.
__device__ __forceinline__ void fetch(u32 to, const Map* map, u32 gate, int x, int y, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(map), "r"(gate), "r"(x), "r"(y), "h"(blocks)
                 : "memory");
}
// A place in a ring, counted without divisions.
template <int STAGES> struct Turn {
    int stage = 0, round = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, round++;
    }
};
// From shared memory, in order with other such reads, writes and barriers.
__device__ __forceinline__ float4 get_4(u32 at) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at));
    return x;
}
#endif
