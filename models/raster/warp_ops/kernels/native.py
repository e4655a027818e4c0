# mypy: ignore-errors
"""What Warp has no words for: wide memory accesses, and sums over the threads of a warp.

Every function has a CUDA form and one for everything else that does the same for a single thread, so that the
kernels are written once. A warp here is CUDA's group of 32 threads.

Scatters cost by the number of atomic additions, most of all where many pixels add to the same place: a large
triangle's vertices, the texel behind the background. So the threads of a warp that add to one place find each
other (`same_lanes`), add up between themselves (`sum_lanes`), and one of them (`leads`) does the atomic.
"""

import warp as wp


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __ldg(source.data + i);
#else
    return source.data[i];
#endif
""")
def load(source: wp.array(dtype=wp.float32), i: int) -> float:
    """Reads a number that nothing writes while the kernel runs, before or after what stands around it."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    const float4 v = __ldg(reinterpret_cast<const float4*>(source.data + i));
    return wp::vec4(v.x, v.y, v.z, v.w);
#else
    return source.data[i];
#endif
""")
def load4(source: wp.array(dtype=wp.vec4), i: int) -> wp.vec4:
    """Reads a vector that nothing writes while the kernel runs, in one access."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<float4*>(target.data + i) = make_float4(value[0], value[1], value[2], value[3]);
#else
    target.data[i] = value;
#endif
""")
def store4(target: wp.array(dtype=wp.vec4), i: int, value: wp.vec4) -> None:
    """Writes a vector in one access."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::
        "l"(__cvta_generic_to_global(target.data + i)),
        "f"(value[0]), "f"(value[1]), "f"(value[2]), "f"(value[3]) : "memory");
#else
    float* to = reinterpret_cast<float*>(target.data + i);
    for (int k = 0; k < 4; ++k)
        if (value[k] != 0.0f)
            wp::atomic_add(to + k, value[k]);
#endif
""")
def add4(target: wp.array(dtype=wp.vec4), i: int, value: wp.vec4) -> None:
    """Adds to a vector: one atomic where the card has it (from Hopper on), else up to four."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    const unsigned active = __activemask();
#if __CUDA_ARCH__ >= 700
    const unsigned same = __match_any_sync(active, key);
#else
    const unsigned same = 1u << (threadIdx.x & 31);
#endif
    return (wp::uint64(active) << 32) | wp::uint64(same);
#else
    return 1;
#endif
""")
def same_lanes(key: wp.int64) -> wp.uint64:
    """The warp's active threads (upper half), and those among them with this thread's key (lower half)."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return (unsigned(lanes) & ((1u << (threadIdx.x & 31)) - 1u)) == 0u;
#else
    return true;
#endif
""")
def leads(lanes: wp.uint64) -> bool:
    """Whether this thread is the first of those with its key."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    const unsigned active = unsigned(lanes >> 32);
    const unsigned same = unsigned(lanes);
    const unsigned lane = threadIdx.x & 31;
    unsigned above = same & (0xfffffffeu << lane);
    unsigned rank = __popc(same & ((1u << lane) - 1u));
    float x = value[0], y = value[1], z = value[2], w = value[3];
    // Every round halves the threads of each key: the odd ones hand their sum to the even one below.
    while (__any_sync(active, above != 0u)) {
        const int from = above ? __ffs(above) - 1 : lane;
        const float dx = __shfl_sync(active, x, from);
        const float dy = __shfl_sync(active, y, from);
        const float dz = __shfl_sync(active, z, from);
        const float dw = __shfl_sync(active, w, from);
        if (above) {
            x += dx;
            y += dy;
            z += dz;
            w += dw;
        }
        above &= ~__ballot_sync(active, rank & 1u);
        rank >>= 1;
    }
    return wp::vec4(x, y, z, w);
#else
    return value;
#endif
""")
def sum_lanes(lanes: wp.uint64, value: wp.vec4) -> wp.vec4:
    """The sum over all threads with this thread's key; the leader's result is the one to use.

    All threads that shared the call of `same_lanes` must share this one.
    """
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (stride % 4 == 0) {
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::
            "l"(__cvta_generic_to_global(target.data + i)), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
        return;
    }
#endif
    float* to = target.data + i;
    wp::atomic_add(to, a);
    if (count > 1)
        wp::atomic_add(to + 1, b);
    if (count > 2)
        wp::atomic_add(to + 2, c);
    if (count > 3)
        wp::atomic_add(to + 3, d);
""")
def add_run(
    target: wp.array(dtype=wp.float32),
    i: int,
    a: float,
    b: float,
    c: float,
    d: float,
    count: int,
    stride: int,
) -> None:
    """Adds the first `count` of four numbers from place `i` on, as one vector if rows are padded to vectors.

    With a `stride` that is a multiple of four, `i` must be one too, and numbers beyond `count` be zero.
    """
    ...
