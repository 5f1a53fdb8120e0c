"""The two kernels: a tile of the intermediate is made, permuted and used up on the chip, and never goes to memory.

    two_factor_kernel     y[t f o] = sum over g r of (sum over i of x[t g i] P[g f r i]) Q[f g r o]
    gradients_kernel      dQ[f g r o] = sum over t of (sum over i of x[t g i] P[g f r i]) dy[t f o], and dP likewise

dx is the first kernel with the roles of the factors exchanged. The products are batched: over gamma on the way in, over phi
on the way out. This is the one module that imports Triton. Only builtins of its language are used here, none of its library
functions, so that the kernels can be interpreted in a process that has loaded the library for compiling.
"""

# T tokens; G gamma, F phi, R rho; I, O features of a block of x and of y. TILE_T .. : how many of them a program holds at
# once; powers of two, of which what exceeds the size is masked.

import triton
import triton.language as tl


@triton.jit
def _product(left, right, total, PRECISION: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Batched, accumulated in float32. The interpreter has no product of bfloat16."""
    if IS_INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_tokens"])  # mixtures have any number of them, each time another
def two_factor_kernel(
    x_ptr,
    P_ptr,
    Q_ptr,
    y_ptr,
    num_tokens,
    stride_x,
    G: tl.constexpr,
    I: tl.constexpr,
    F: tl.constexpr,
    R: tl.constexpr,
    O: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_G: tl.constexpr,
    TILE_F: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_I: tl.constexpr,
    TILE_O: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """One tile of tokens and of phi, over all of gamma; programs that share a tile of x are neighbours."""
    num_tiles_F: tl.constexpr = (F + TILE_F - 1) // TILE_F
    tile_f = tl.program_id(0) % num_tiles_F
    t = (tl.program_id(0) // num_tiles_F).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)
    f = tile_f * TILE_F + tl.arange(0, TILE_F)
    i = tl.arange(0, TILE_I)
    o = tl.arange(0, TILE_O)
    # The axes (phi, rho) of what the first product makes, and (gamma, rho) of what the second sums over.
    n = tl.arange(0, TILE_F * TILE_R)
    f_n = tile_f * TILE_F + n // TILE_R
    r_n = n % TILE_R
    k = tl.arange(0, TILE_G * TILE_R)
    r_k = k % TILE_R
    y = tl.full([TILE_F, TILE_T, TILE_O], 0, tl.float32)
    nothing = tl.full([TILE_G, TILE_T, TILE_F * TILE_R], 0, tl.float32)
    for start in range(0, G, TILE_G):
        g = start + tl.arange(0, TILE_G)
        g_k = start + k // TILE_R
        x = tl.load(
            x_ptr + (t * stride_x)[None, :, None] + (g * I)[:, None, None] + i[None, None, :],
            mask=(t < num_tokens)[None, :, None] & (g < G)[:, None, None] & (i < I)[None, None, :],
            other=0.0,
        )
        P = tl.load(
            P_ptr + (g * (F * R * I))[:, None, None] + ((f_n * R + r_n) * I)[None, None, :] + i[None, :, None],
            mask=(g < G)[:, None, None] & ((f_n < F) & (r_n < R))[None, None, :] & (i < I)[None, :, None],
            other=0.0,
        )
        z = _product(x, P, nothing, PRECISION, IS_INTERPRETED).to(x_ptr.dtype.element_ty)
        z = tl.permute(tl.reshape(z, [TILE_G, TILE_T, TILE_F, TILE_R]), (2, 1, 0, 3))
        z = tl.reshape(z, [TILE_F, TILE_T, TILE_G * TILE_R])
        Q = tl.load(
            Q_ptr + (f * (G * R * O))[:, None, None] + ((g_k * R + r_k) * O)[None, :, None] + o[None, None, :],
            mask=(f < F)[:, None, None] & ((g_k < G) & (r_k < R))[None, :, None] & (o < O)[None, None, :],
            other=0.0,
        )
        y = _product(z, Q, y, PRECISION, IS_INTERPRETED)
    tl.store(
        y_ptr + (t * (F * O))[None, :, None] + (f * O)[:, None, None] + o[None, None, :],
        y.to(y_ptr.dtype.element_ty),
        mask=(t < num_tokens)[None, :, None] & (f < F)[:, None, None] & (o < O)[None, None, :],
    )


@triton.jit(do_not_specialize=["num_tokens", "tokens_per_split"])
def gradients_kernel(
    x_ptr,
    P_ptr,
    Q_ptr,
    dy_ptr,
    dP_ptr,
    dQ_ptr,
    num_tokens,
    tokens_per_split,
    stride_x,
    stride_dy,
    G: tl.constexpr,
    I: tl.constexpr,
    F: tl.constexpr,
    R: tl.constexpr,
    O: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_G: tl.constexpr,
    TILE_F: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_I: tl.constexpr,
    TILE_O: tl.constexpr,
    WITH_DP: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """One tile of gamma and of phi, over a split of the tokens; what the splits find is summed afterwards, in one order."""
    num_tiles_F: tl.constexpr = (F + TILE_F - 1) // TILE_F
    tile_f = tl.program_id(0) % num_tiles_F
    tile_g = tl.program_id(0) // num_tiles_F
    split = tl.program_id(1).to(tl.int64)
    g = tile_g * TILE_G + tl.arange(0, TILE_G)
    f = tile_f * TILE_F + tl.arange(0, TILE_F)
    i = tl.arange(0, TILE_I)
    o = tl.arange(0, TILE_O)
    n = tl.arange(0, TILE_F * TILE_R)
    f_n = tile_f * TILE_F + n // TILE_R
    r_n = n % TILE_R
    k = tl.arange(0, TILE_G * TILE_R)
    g_k = tile_g * TILE_G + k // TILE_R
    r_k = k % TILE_R
    nothing_n = tl.full([TILE_G, TILE_T, TILE_F * TILE_R], 0, tl.float32)
    nothing_k = tl.full([TILE_F, TILE_T, TILE_G * TILE_R], 0, tl.float32)
    dQ = tl.full([TILE_F, TILE_G * TILE_R, TILE_O], 0, tl.float32)
    P = tl.load(
        P_ptr + (g * (F * R * I))[:, None, None] + ((f_n * R + r_n) * I)[None, None, :] + i[None, :, None],
        mask=(g < G)[:, None, None] & ((f_n < F) & (r_n < R))[None, None, :] & (i < I)[None, :, None],
        other=0.0,
    )
    if WITH_DP:
        dP = tl.full([TILE_G, TILE_F * TILE_R, TILE_I], 0, tl.float32)
        Q = tl.load(
            Q_ptr + (f * (G * R * O))[:, None, None] + ((g_k * R + r_k) * O)[None, None, :] + o[None, :, None],
            mask=(f < F)[:, None, None] & ((g_k < G) & (r_k < R))[None, None, :] & (o < O)[None, :, None],
            other=0.0,
        )
    first = split * tokens_per_split
    last = tl.minimum(first + tokens_per_split, num_tokens)
    for start in range(first, last, TILE_T):
        t = start + tl.arange(0, TILE_T)
        x = tl.load(
            x_ptr + (t * stride_x)[None, :, None] + (g * I)[:, None, None] + i[None, None, :],
            mask=(t < last)[None, :, None] & (g < G)[:, None, None] & (i < I)[None, None, :],
            other=0.0,
        )
        dy = tl.load(
            dy_ptr + (t * stride_dy)[None, :, None] + (f * O)[:, None, None] + o[None, None, :],
            mask=(t < last)[None, :, None] & (f < F)[:, None, None] & (o < O)[None, None, :],
            other=0.0,
        )
        z = _product(x, P, nothing_n, PRECISION, IS_INTERPRETED).to(x_ptr.dtype.element_ty)
        z = tl.permute(tl.reshape(z, [TILE_G, TILE_T, TILE_F, TILE_R]), (2, 0, 3, 1))
        dQ = _product(tl.reshape(z, [TILE_F, TILE_G * TILE_R, TILE_T]), dy, dQ, PRECISION, IS_INTERPRETED)
        if WITH_DP:
            dz = _product(dy, Q, nothing_k, PRECISION, IS_INTERPRETED).to(x_ptr.dtype.element_ty)
            dz = tl.permute(tl.reshape(dz, [TILE_F, TILE_T, TILE_G, TILE_R]), (2, 0, 3, 1))
            dP = _product(tl.reshape(dz, [TILE_G, TILE_F * TILE_R, TILE_T]), x, dP, PRECISION, IS_INTERPRETED)
    tl.store(
        dQ_ptr
        + split * (F * G * R * O)
        + (f * (G * R * O))[:, None, None]
        + ((g_k * R + r_k) * O)[None, :, None]
        + o[None, None, :],
        dQ,
        mask=(f < F)[:, None, None] & ((g_k < G) & (r_k < R))[None, :, None] & (o < O)[None, None, :],
    )
    if WITH_DP:
        tl.store(
            dP_ptr
            + split * (G * F * R * I)
            + (g * (F * R * I))[:, None, None]
            + ((f_n * R + r_n) * I)[None, :, None]
            + i[None, None, :],
            dP,
            mask=(g < G)[:, None, None] & ((f_n < F) & (r_n < R))[None, :, None] & (i < I)[None, None, :],
        )
