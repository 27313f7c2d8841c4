/* Integer kernels of the fast simulator, and the loop that runs a list of steps over pictures.

   Layout: one picture is [H][W][C] bytes, channels padded to a multiple of 16, with a border of its zero value
   around it, so that no convolution asks whether it is inside. Signed tensors are stored as value + 128; `zero` is the
   byte that stands for 0. Accumulators are int32; lowering.py proves that they cannot overflow.

   Requantization: v = fl(fl(acc * scale) + offset) in float32, rounded half to even. Where v lies nearer to a tie
   than its error bound, the integer is decided by `bounds`, the exact accumulator at which each output integer
   begins. Products and sums are rounded apart (no fused multiply-add), so every build computes the same v.

   Each kernel exists once in portable C; the hot ones also for AVX-512 with VNNI, the convolution also for AVX2. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && !defined(PORTABLE) && !defined(WITHOUT_VNNI)
#define VNNI 1
#include <immintrin.h>
#else
#define VNNI 0
#endif
#if !VNNI && defined(__AVX2__) && !defined(PORTABLE)
#define AVX2 1
#include <immintrin.h>
#else
#define AVX2 0
#endif

enum { DENSE, DEPTHWISE, GROUPED, ADD, NEAREST, MAX_POOL, CONCAT, ZERO_INSERT };

typedef struct {
    int64_t offset;                     /* of pixel (0, 0) in the arena, bytes */
    int32_t channels, pixel, row;       /* channels; bytes from pixel to pixel, from row to row */
    int32_t height, width;
    int32_t top, left, bottom, right;   /* border, pixels */
    int32_t zero, flip;                 /* byte of the value 0; 128 where signed */
} Tensor;

typedef struct {
    int32_t kind, out, in_count, groups;
    int32_t kernel[2], stride[2], dilation[2], pad[2];
    int32_t low, high;                  /* saturation, as bytes of the output */
    int32_t lowest, bound_count;        /* output byte before bounds[0], bounds per channel */
    int32_t shift[3];                   /* ADD: left shifts of both inputs, right shift of the sum */
    int32_t raw;                        /* write the int32 accumulators instead, [C][H][W] */
    float tie;                          /* |v - round(v)| from which `bounds` decides */
    int32_t quads;                      /* DENSE: input channels / 4, rounded up */
    const int32_t *inputs;
    const int8_t *weights;
    const int32_t *initial;             /* accumulators begin here: -zero * sum of the weights */
    const float *scale, *shifted;       /* per channel */
    const int32_t *bounds;              /* [C][bound_count], rising */
    const int32_t *blocks;              /* DENSE: first 16-channel group and number of groups, pairs, 0 ends */
    const int32_t *rows, *columns;      /* NEAREST: source of every output row and column */
    const uint8_t *tables;              /* NEAREST, CONCAT: 256 bytes for each input */
} Step;

typedef struct {
    int32_t tensor_count, step_count;
    const Tensor *tensors;
    const Step *steps;
    const int32_t *inputs;              /* tensors filled from outside, -1 ends */
} Program;

typedef struct {
    uint8_t *const *imports;            /* by tensor: [N][C][H][W] bytes, or null */
    uint8_t *const *exports;            /* by tensor: [N][C][H][W] bytes (int32 where raw), or null */
} Transfers;

static uint8_t *at(const Tensor *t, uint8_t *arena, int y, int x)
{
    return arena + t->offset + (int64_t)y * t->row + (int64_t)x * t->pixel;
}

static int settle(const Step *s, int channel, int32_t acc, float v)
{
    const int32_t *bounds = s->bounds + (int64_t)channel * s->bound_count;
    int above = (int)floorf(v) + 1;     /* the tie lies between above - 1 and above */
    int index = above - s->lowest - 1;
    if (index < 0)
        return s->low;
    if (index >= s->bound_count)
        return s->high;
    int q = acc >= bounds[index] ? above : above - 1;
    return q < s->low ? s->low : q > s->high ? s->high : q;
}

static int requantized(const Step *s, int channel, int32_t acc)
{
    float product = (float)acc * s->scale[channel];
    float v = product + s->shifted[channel];
    float nearest = rintf(v);
    if (fabsf(v - nearest) >= s->tie)
        return settle(s, channel, acc, v);
    return nearest < s->low ? s->low : nearest > s->high ? s->high : (int)nearest;
}

/* `count` channels from `channel` on, at most 64: without a branch in the loop, and again where one is near a tie. */
static void requantize(const Step *s, int channel, int count, const int32_t *acc, uint8_t *out)
{
    const float *scale = s->scale + channel, *shifted = s->shifted + channel;
    const float low = (float)s->low, high = (float)s->high, tie = s->tie;
    int near = 0;
    for (int i = 0; i < count; i++) {
        float product = (float)acc[i] * scale[i];
        float v = product + shifted[i];
        float nearest = rintf(v);
        near |= fabsf(v - nearest) >= tie;
        nearest = nearest < low ? low : nearest;
        out[i] = (uint8_t)(int)(nearest > high ? high : nearest);
    }
    if (near)
        for (int i = 0; i < count; i++)
            out[i] = (uint8_t)requantized(s, channel + i, acc[i]);
}

/* ---- borders --------------------------------------------------------------------------------------------- */

static void fill_border(const Tensor *t, uint8_t *arena, int first, int last)
{
    int whole = t->left + t->width + t->right;
    for (int y = first; y < last; y++) {
        if (t->left)
            memset(at(t, arena, y, -t->left), t->zero, (size_t)t->left * t->pixel);
        if (t->right)
            memset(at(t, arena, y, t->width), t->zero, (size_t)t->right * t->pixel);
    }
    if (first == 0)
        for (int y = -t->top; y < 0; y++)
            memset(at(t, arena, y, -t->left), t->zero, (size_t)whole * t->pixel);
    if (last == t->height)
        for (int y = t->height; y < t->height + t->bottom; y++)
            memset(at(t, arena, y, -t->left), t->zero, (size_t)whole * t->pixel);
}

/* ---- convolutions ---------------------------------------------------------------------------------------- */

static void write_raw(const Tensor *o, int32_t *raw, int channel, int y, int x, int32_t acc)
{
    raw[((int64_t)channel * o->height + y) * o->width + x] = acc;
}

/* P pixels of one row times V groups of 16 output channels. The weights lie as [tap][quad][V][16][4]. */
#if VNNI
#define TILE_BODY(P, V)                                                                                          \
    __m512i acc[P][V];                                                                                           \
    for (int p = 0; p < P; p++)                                                                                  \
        for (int v = 0; v < V; v++)                                                                              \
            acc[p][v] = _mm512_loadu_si512(s->initial + 16 * (group + v));                                       \
    for (int t = 0; t < taps; t++) {                                                                             \
        const uint8_t *a = in + tap[t];                                                                          \
        for (int k = 0; k < s->quads; k++, w += 64 * V, a += 4) {                                                \
            __m512i b[V];                                                                                        \
            for (int v = 0; v < V; v++)                                                                          \
                b[v] = _mm512_loadu_si512(w + 64 * v);                                                           \
            for (int p = 0; p < P; p++) {                                                                        \
                int32_t quad;                                                                                    \
                memcpy(&quad, a + (int64_t)p * step, 4);                                                         \
                __m512i x = _mm512_set1_epi32(quad);                                                             \
                for (int v = 0; v < V; v++)                                                                      \
                    acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], x, b[v]);                                         \
            }                                                                                                    \
        }                                                                                                        \
    }                                                                                                            \
    if (raw) {                                                                                                   \
        for (int p = 0; p < P; p++)                                                                              \
            for (int v = 0; v < V; v++) {                                                                        \
                int32_t lanes[16];                                                                               \
                _mm512_storeu_si512(lanes, acc[p][v]);                                                           \
                for (int i = 0; i < 16 && 16 * (group + v) + i < o->channels; i++)                               \
                    write_raw(o, raw, 16 * (group + v) + i, y, x0 + p, lanes[i]);                                \
            }                                                                                                    \
        return;                                                                                                  \
    }                                                                                                            \
    const __m512 tie = _mm512_set1_ps(s->tie);                                                                   \
    const __m512i low = _mm512_set1_epi32(s->low), high = _mm512_set1_epi32(s->high);                            \
    for (int v = 0; v < V; v++) {                                                                                \
        __m512 scale = _mm512_loadu_ps(s->scale + 16 * (group + v));                                             \
        __m512 shifted = _mm512_loadu_ps(s->shifted + 16 * (group + v));                                         \
        for (int p = 0; p < P; p++) {                                                                            \
            __m512 f = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[p][v]), scale), shifted);              \
            __m512i q = _mm512_cvtps_epi32(f);                                                                   \
            __mmask16 near = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_reduce_ps(f, 0)), tie, _CMP_GE_OQ);         \
            q = _mm512_min_epi32(_mm512_max_epi32(q, low), high);                                                \
            if (__builtin_expect(near, 0))                                                                       \
                q = settle_lanes(s, near, acc[p][v], f, q, 16 * (group + v));                                    \
            _mm_storeu_si128((__m128i *)(out + (int64_t)p * o->pixel + 16 * v), _mm512_cvtepi32_epi8(q));        \
        }                                                                                                        \
    }

static __attribute__((noinline)) __m512i settle_lanes(
    const Step *s, __mmask16 near, __m512i acc, __m512 f, __m512i q, int channel)
{
    int32_t a[16], r[16];
    float v[16];
    _mm512_storeu_si512(a, acc);
    _mm512_storeu_ps(v, f);
    _mm512_storeu_si512(r, q);
    for (int i = 0; i < 16; i++)
        if (near >> i & 1)
            r[i] = settle(s, channel + i, a[i], v[i]);
    return _mm512_loadu_si512(r);
}
#else
#if AVX2
/* acc + the four products of each lane, x unsigned and w signed, as VNNI computes it: even and odd bytes apart. */
#define ACCUMULATE(P, V)                                                                                         \
    const __m256i even = _mm256_set1_epi16(255);                                                                 \
    __m256i sum[P][2 * V];                                                                                       \
    for (int p = 0; p < P; p++)                                                                                  \
        for (int v = 0; v < 2 * V; v++)                                                                          \
            sum[p][v] = _mm256_loadu_si256((const __m256i *)(s->initial + 16 * group + 8 * v));                  \
    for (int t = 0; t < taps; t++) {                                                                             \
        const uint8_t *a = in + tap[t];                                                                          \
        for (int k = 0; k < s->quads; k++, w += 64 * V, a += 4)                                                  \
            for (int v = 0; v < 2 * V; v++) {                                                                    \
                __m256i b = _mm256_loadu_si256((const __m256i *)(w + 32 * v));                                   \
                __m256i b0 = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), b1 = _mm256_srai_epi16(b, 8);        \
                for (int p = 0; p < P; p++) {                                                                    \
                    int32_t quad;                                                                                \
                    memcpy(&quad, a + (int64_t)p * step, 4);                                                     \
                    __m256i x = _mm256_set1_epi32(quad);                                                         \
                    __m256i x0 = _mm256_and_si256(x, even), x1 = _mm256_srli_epi16(x, 8);                        \
                    __m256i products = _mm256_add_epi32(_mm256_madd_epi16(x0, b0), _mm256_madd_epi16(x1, b1));   \
                    sum[p][v] = _mm256_add_epi32(sum[p][v], products);                                           \
                }                                                                                                \
            }                                                                                                    \
    }                                                                                                            \
    int32_t acc[P][16 * V];                                                                                      \
    for (int p = 0; p < P; p++)                                                                                  \
        for (int v = 0; v < 2 * V; v++)                                                                          \
            _mm256_storeu_si256((__m256i *)(acc[p] + 8 * v), sum[p][v]);
#else
#define ACCUMULATE(P, V)                                                                                         \
    int32_t acc[P][16 * V];                                                                                      \
    for (int p = 0; p < P; p++)                                                                                  \
        for (int i = 0; i < 16 * V; i++)                                                                         \
            acc[p][i] = s->initial[16 * group + i];                                                              \
    for (int t = 0; t < taps; t++) {                                                                             \
        const uint8_t *a = in + tap[t];                                                                          \
        for (int k = 0; k < s->quads; k++, w += 64 * V, a += 4)                                                  \
            for (int p = 0; p < P; p++) {                                                                        \
                const uint8_t *x = a + (int64_t)p * step;                                                        \
                for (int i = 0; i < 16 * V; i++)                                                                 \
                    acc[p][i] += x[0] * w[4 * i] + x[1] * w[4 * i + 1] + x[2] * w[4 * i + 2] + x[3] * w[4 * i + 3]; \
            }                                                                                                    \
    }
#endif
#define TILE_BODY(P, V)                                                                                          \
    ACCUMULATE(P, V)                                                                                             \
    for (int p = 0; p < P; p++) {                                                                                \
        if (!raw)                                                                                                \
            requantize(s, 16 * group, 16 * V, acc[p], out + (int64_t)p * o->pixel);                              \
        else                                                                                                     \
            for (int i = 0; i < 16 * V && 16 * group + i < o->channels; i++)                                     \
                write_raw(o, raw, 16 * group + i, y, x0 + p, acc[p][i]);                                         \
    }
#endif

#define TILE(P, V)                                                                                               \
    static void tile_##P##_##V(const Step *s, const Tensor *o, const uint8_t *in, const int64_t *tap, int taps,  \
                               int64_t step, const int8_t *w, uint8_t *out, int32_t *raw, int group, int y, int x0) \
    {                                                                                                            \
        TILE_BODY(P, V)                                                                                          \
    }
TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4)
#if VNNI
TILE(6, 4) TILE(8, 3) TILE(12, 2) TILE(16, 1)
static const int WIDTH[4] = {16, 12, 8, 6};
#define WIDE_TILES {tile_16_1, tile_12_2, tile_8_3, tile_6_4}
#else
TILE(2, 4) TILE(2, 3) TILE(3, 2) TILE(6, 1)
static const int WIDTH[4] = {6, 3, 2, 2};
#define WIDE_TILES {tile_6_1, tile_3_2, tile_2_3, tile_2_4}
#endif

typedef void Tile(const Step *, const Tensor *, const uint8_t *, const int64_t *, int, int64_t, const int8_t *,
                  uint8_t *, int32_t *, int, int, int);

static Tile *const SINGLE[4] = {tile_1_1, tile_1_2, tile_1_3, tile_1_4};
static Tile *const WIDE[4] = WIDE_TILES;

static void dense(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int32_t *raw, int first, int last)
{
    enum { MAX_TAPS = 64 * 64 };
    int64_t tap[MAX_TAPS];
    int taps = s->kernel[0] * s->kernel[1];
    for (int ky = 0, t = 0; ky < s->kernel[0]; ky++)
        for (int kx = 0; kx < s->kernel[1]; kx++, t++)
            tap[t] = (int64_t)ky * s->dilation[0] * i->row + (int64_t)kx * s->dilation[1] * i->pixel;
    int64_t step = (int64_t)s->stride[1] * i->pixel;
    const int8_t *w = s->weights;
    for (const int32_t *block = s->blocks; block[1]; block += 2) {
        int group = block[0], v = block[1], wide = WIDTH[v - 1];
        for (int y = first; y < last; y++) {
            const uint8_t *in = at(i, arena, y * s->stride[0] - s->pad[0], -s->pad[1]);
            uint8_t *out = at(o, arena, y, 0) + 16 * group;
            int x = 0;
            if (o->width >= wide)
                for (; x < o->width; x += wide) {
                    if (x + wide > o->width)
                        x = o->width - wide;    /* the last tile overlaps: the same values again */
                    WIDE[v - 1](s, o, in + x * step, tap, taps, step, w, out + (int64_t)x * o->pixel, raw, group, y, x);
                }
            for (; x < o->width; x++)
                SINGLE[v - 1](s, o, in + x * step, tap, taps, step, w, out + (int64_t)x * o->pixel, raw, group, y, x);
        }
        w += (int64_t)taps * s->quads * 64 * v;
    }
}

/* Any groups, output by output: weights [Cout][Cin / groups][kh][kw]. */
static void grouped(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int32_t *raw, int first, int last)
{
    int in_group = i->channels / s->groups, out_group = o->channels / s->groups;
    for (int y = first; y < last; y++)
        for (int x = 0; x < o->width; x++) {
            uint8_t *out = at(o, arena, y, x);
            for (int c = 0; c < o->channels; c++) {
                const int8_t *w = s->weights + (int64_t)c * in_group * s->kernel[0] * s->kernel[1];
                int32_t acc = s->initial[c];
                for (int k = 0; k < in_group; k++)
                    for (int ky = 0; ky < s->kernel[0]; ky++) {
                        const uint8_t *a = at(i, arena, y * s->stride[0] - s->pad[0] + ky * s->dilation[0],
                                              x * s->stride[1] - s->pad[1]) + c / out_group * in_group + k;
                        for (int kx = 0; kx < s->kernel[1]; kx++, w++)
                            acc += *w * a[(int64_t)kx * s->dilation[1] * i->pixel];
                    }
                if (raw)
                    write_raw(o, raw, c, y, x, acc);
                else
                    out[c] = (uint8_t)requantized(s, c, acc);
            }
        }
}

/* Depthwise, one output channel for each input channel: weights [kh][kw][C padded to 16]. */
static void depthwise(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int32_t *raw, int first, int last)
{
    int padded = (o->channels + 15) / 16 * 16;
    for (int y = first; y < last; y++)
        for (int x = 0; x < o->width; x++) {
            uint8_t *out = at(o, arena, y, x);
            for (int c = 0; c < padded; c += 16) {
                int32_t acc[16];
                memcpy(acc, s->initial + c, sizeof acc);
                const int8_t *w = s->weights + c;
                for (int ky = 0; ky < s->kernel[0]; ky++) {
                    const uint8_t *a = at(i, arena, y * s->stride[0] - s->pad[0] + ky * s->dilation[0],
                                          x * s->stride[1] - s->pad[1]) + c;
                    for (int kx = 0; kx < s->kernel[1]; kx++, w += padded, a += (int64_t)s->dilation[1] * i->pixel)
                        for (int k = 0; k < 16; k++)
                            acc[k] += a[k] * w[k];
                }
                if (!raw)
                    requantize(s, c, 16, acc, out + c);
                else
                    for (int k = 0; k < 16 && c + k < o->channels; k++)
                        write_raw(o, raw, c + k, y, x, acc[k]);
            }
        }
}

#if VNNI
/* Depthwise 3x3, stride 1, for 64 channels at once. The three bytes of a column and a zero are one lane of VNNI, so
   one interleaved column serves the three outputs it touches. Interleaving permutes the channels inside a block:
   vector j holds channels 16*l + 4*j + e in lane 4*l + e; packing undoes it. Weights: [block][kx][j][16][4]. */
static void depthwise_3x3(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int first, int last)
{
    const __m512 tie = _mm512_set1_ps(s->tie);
    const __m512i low = _mm512_set1_epi8((char)s->low), high = _mm512_set1_epi8((char)s->high);
    const __m512i zero = _mm512_setzero_si512();
    for (int c = 0; c < o->pixel; c += 64) {
        int block = c / 64, left = o->pixel - c;
        __mmask64 mask = left >= 64 ? ~0ULL : (1ULL << left) - 1;
        const int8_t *weights = s->weights + (int64_t)block * 12 * 64;
        const int32_t *initial = s->initial + 64 * block;
        const float *scale = s->scale + 64 * block, *shifted = s->shifted + 64 * block;
        __m512i w[3][4];
        for (int kx = 0; kx < 3; kx++)
            for (int j = 0; j < 4; j++)
                w[kx][j] = _mm512_loadu_si512(weights + (kx * 4 + j) * 64);
        for (int y = first; y < last; y++) {
            const uint8_t *r0 = at(i, arena, y - s->pad[0], -s->pad[1]) + c, *r1 = r0 + i->row, *r2 = r1 + i->row;
            uint8_t *out = at(o, arena, y, 0) + c;
            __m512i now[4], next[4], after[4];
            for (int j = 0; j < 4; j++)
                now[j] = next[j] = _mm512_loadu_si512(initial + 16 * j);
            for (int x = -2; x < o->width; x++, r0 += i->pixel, r1 += i->pixel, r2 += i->pixel) {
                __m512i a = _mm512_maskz_loadu_epi8(mask, r0), b = _mm512_maskz_loadu_epi8(mask, r1);
                __m512i d = _mm512_maskz_loadu_epi8(mask, r2);
                __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
                __m512i d0 = _mm512_unpacklo_epi8(d, zero), d1 = _mm512_unpackhi_epi8(d, zero);
                __m512i column[4] = {_mm512_unpacklo_epi16(ab0, d0), _mm512_unpackhi_epi16(ab0, d0),
                                     _mm512_unpacklo_epi16(ab1, d1), _mm512_unpackhi_epi16(ab1, d1)};
                for (int j = 0; j < 4; j++) {
                    now[j] = _mm512_dpbusd_epi32(now[j], column[j], w[2][j]);
                    next[j] = _mm512_dpbusd_epi32(next[j], column[j], w[1][j]);
                    after[j] = _mm512_dpbusd_epi32(_mm512_loadu_si512(initial + 16 * j), column[j], w[0][j]);
                }
                if (x >= 0) {
                    __m512 f[4];
                    __m512i q[4];
                    __mmask16 near[4];
                    for (int j = 0; j < 4; j++) {
                        f[j] = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(now[j]), _mm512_loadu_ps(scale + 16 * j)),
                                             _mm512_loadu_ps(shifted + 16 * j));
                        q[j] = _mm512_cvtps_epi32(f[j]);
                        near[j] = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_reduce_ps(f[j], 0)), tie, _CMP_GE_OQ);
                    }
                    __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
                    bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, low), high);
                    _mm512_mask_storeu_epi8(out + (int64_t)x * o->pixel, mask, bytes);
                    if (__builtin_expect(near[0] | near[1] | near[2] | near[3], 0))
                        for (int j = 0; j < 4; j++)
                            if (near[j]) {
                                int32_t acc[16];
                                float v[16];
                                _mm512_storeu_si512(acc, now[j]);
                                _mm512_storeu_ps(v, f[j]);
                                for (int k = 0; k < 16; k++) {
                                    int channel = 16 * (k / 4) + 4 * j + k % 4;
                                    if (near[j] >> k & 1 && c + channel < o->channels)
                                        out[(int64_t)x * o->pixel + channel] =
                                            (uint8_t)settle(s, c + channel, acc[k], v[k]);
                                }
                            }
                }
                for (int j = 0; j < 4; j++)
                    now[j] = next[j], next[j] = after[j];
            }
        }
    }
}
#endif

/* ---- everything else ------------------------------------------------------------------------------------- */

static void add(const Step *s, const Tensor *a, const Tensor *b, const Tensor *o, uint8_t *arena, int first, int last)
{
    int right = s->shift[2], half = right ? (1 << (right - 1)) - 1 : 0, odd = right ? 1 : 0;
    int zero = (a->zero << s->shift[0]) + (b->zero << s->shift[1]);
    for (int y = first; y < last; y++) {
        const uint8_t *p = at(a, arena, y, 0), *q = at(b, arena, y, 0);
        uint8_t *out = at(o, arena, y, 0);
        int count = o->width * o->pixel;
        for (int k = 0; k < count; k++) {
            int32_t sum = (p[k] << s->shift[0]) + (q[k] << s->shift[1]) - zero;
            int32_t r = ((sum + half + (sum >> right & odd)) >> right) + o->zero;   /* half to even */
            out[k] = (uint8_t)(r < s->low ? s->low : r > s->high ? s->high : r);
        }
    }
}

static void nearest(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int first, int last)
{
    for (int y = first; y < last; y++)
        for (int x = 0; x < o->width; x++) {
            const uint8_t *a = at(i, arena, s->rows[y], s->columns[x]);
            uint8_t *out = at(o, arena, y, x);
            if (s->tables)
                for (int c = 0; c < o->channels; c++)
                    out[c] = s->tables[a[c]];
            else
                memcpy(out, a, (size_t)o->pixel);
        }
}

/* The border holds zeros, not the least number, so it is left out. */
static void max_pool(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int first, int last)
{
    for (int y = first; y < last; y++)
        for (int x = 0; x < o->width; x++) {
            uint8_t *out = at(o, arena, y, x);
            memset(out, 0, (size_t)o->pixel);
            for (int ky = 0; ky < s->kernel[0]; ky++) {
                int iy = y * s->stride[0] - s->pad[0] + ky;
                if (iy < 0 || iy >= i->height)
                    continue;
                for (int kx = 0; kx < s->kernel[1]; kx++) {
                    int ix = x * s->stride[1] - s->pad[1] + kx;
                    if (ix < 0 || ix >= i->width)
                        continue;
                    const uint8_t *a = at(i, arena, iy, ix);
                    for (int c = 0; c < o->pixel; c++)
                        out[c] = out[c] > a[c] ? out[c] : a[c];
                }
            }
        }
}

static void concat(const Step *s, const Tensor *tensors, const Tensor *o, uint8_t *arena, int first, int last)
{
    for (int y = first; y < last; y++)
        for (int n = 0, channel = 0; n < s->in_count; n++) {
            const Tensor *i = tensors + s->inputs[n];
            const uint8_t *table = s->tables + 256 * n;
            for (int x = 0; x < o->width; x++) {
                const uint8_t *a = at(i, arena, y, x);
                uint8_t *out = at(o, arena, y, x) + channel;
                for (int c = 0; c < i->channels; c++)
                    out[c] = table[a[c]];
            }
            channel += i->channels;
        }
}

/* Zeros between the pixels, for a transposed convolution: pixel (y, x) goes to (y * stride, x * stride). */
static void zero_insert(const Step *s, const Tensor *i, const Tensor *o, uint8_t *arena, int first, int last)
{
    for (int y = first; y < last; y++) {
        memset(at(o, arena, y, 0), o->zero, (size_t)o->width * o->pixel);
        if (y % s->stride[0] == 0)
            for (int x = 0; x < i->width; x++)
                memcpy(at(o, arena, y, x * s->stride[1]), at(i, arena, y / s->stride[0], x), (size_t)i->pixel);
    }
}

/* ---- in, out, and the loop ------------------------------------------------------------------------------- */

static void import_tensor(const Tensor *t, uint8_t *arena, const uint8_t *from, int first, int last)
{
    for (int y = first; y < last; y++) {
        for (int c = 0; c < t->channels; c++) {
            const uint8_t *row = from + ((int64_t)c * t->height + y) * t->width;
            uint8_t *to = at(t, arena, y, 0) + c;
            for (int x = 0; x < t->width; x++)
                to[(int64_t)x * t->pixel] = row[x] ^ (uint8_t)t->flip;
        }
    }
    fill_border(t, arena, first, last);
}

static void export_tensor(const Tensor *t, uint8_t *arena, uint8_t *to, int first, int last)
{
    for (int c = 0; c < t->channels; c++)
        for (int y = first; y < last; y++) {
            uint8_t *row = to + ((int64_t)c * t->height + y) * t->width;
            const uint8_t *from = at(t, arena, y, 0) + c;
            for (int x = 0; x < t->width; x++)
                row[x] = from[(int64_t)x * t->pixel] ^ (uint8_t)t->flip;
        }
}

static void run_step(const Step *s, const Tensor *tensors, uint8_t *arena, int32_t *raw, int first, int last)
{
    const Tensor *o = tensors + s->out, *i = tensors + s->inputs[0];
    switch (s->kind) {
    case DENSE: dense(s, i, o, arena, raw, first, last); break;
    case GROUPED: grouped(s, i, o, arena, raw, first, last); break;
    case ADD: add(s, i, tensors + s->inputs[1], o, arena, first, last); break;
    case NEAREST: nearest(s, i, o, arena, first, last); break;
    case MAX_POOL: max_pool(s, i, o, arena, first, last); break;
    case CONCAT: concat(s, tensors, o, arena, first, last); break;
    case ZERO_INSERT: zero_insert(s, i, o, arena, first, last); break;
    case DEPTHWISE:
#if VNNI
        if (s->quads) {                 /* program.py laid the weights out for it */
            depthwise_3x3(s, i, o, arena, first, last);
            break;
        }
#endif
        depthwise(s, i, o, arena, raw, first, last);
        break;
    }
    if (!raw)
        fill_border(o, arena, first, last);
}

/* All threads of a picture meet here; whoever waits long gives its core away. */
extern int sched_yield(void);
static void meet(int32_t *barrier, int threads)
{
    if (threads == 1)
        return;
    int round = __atomic_load_n(barrier + 1, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(barrier, 1, __ATOMIC_ACQ_REL) == threads) {
        __atomic_store_n(barrier, 0, __ATOMIC_RELAXED);
        __atomic_store_n(barrier + 1, round + 1, __ATOMIC_RELEASE);
    } else
        for (int spins = 0; __atomic_load_n(barrier + 1, __ATOMIC_ACQUIRE) == round; spins++)
            if (spins > 2000)
                sched_yield();
}

/* 1 where the kernels of this build want depthwise 3x3 weights interleaved. */
int32_t vector_build(void) { return VNNI; }

/* Pictures first .. last - 1; `threads` calls at once share the arena and each picture's rows. */
void run(const Program *p, const Transfers *io, uint8_t *arena, int32_t *barrier,
         int32_t first, int32_t last, int32_t thread, int32_t threads)
{
    for (int n = first; n < last; n++) {
        for (const int32_t *t = p->inputs; *t >= 0; t++) {
            const Tensor *tensor = p->tensors + *t;
            int64_t size = (int64_t)tensor->channels * tensor->height * tensor->width;
            import_tensor(tensor, arena, io->imports[*t] + n * size, tensor->height * thread / threads,
                          tensor->height * (thread + 1) / threads);
        }
        meet(barrier, threads);
        for (int k = 0; k < p->step_count; k++) {
            const Step *s = p->steps + k;
            const Tensor *o = p->tensors + s->out;
            int64_t size = (int64_t)o->channels * o->height * o->width;
            int from = o->height * thread / threads, to = o->height * (thread + 1) / threads;
            uint8_t *export = io->exports[s->out];
            int32_t *raw = s->raw ? (int32_t *)export + n * size : 0;
            run_step(s, p->tensors, arena, raw, from, to);
            if (export && !s->raw)
                export_tensor(o, arena, export + n * size, from, to);
            meet(barrier, threads);
        }
    }
}
