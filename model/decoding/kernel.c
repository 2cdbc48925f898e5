/* The trunk's forward pass over single tokens on a CPU, in one call: what torch needs a hundred calls for.

   Notable here
   - A token is (slot, position): it reads the keys and values of its slot up to its position. So one function serves a
     prompt, a batch of rows at different positions, and several tokens of one row.
   - Every number is summed in the same order whatever else is in the call: a token's logits have the same bits alone and
     in a batch.
   - Weights are fp32, bf16, or int8 with one scale a row; everything else is fp32. Reading them bounds the speed, so they
     are read once a call, in order.
   - kernel.py has the structures' other half; transformer.py, block.py and attention.py have the same mathematics. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { FP32, BF16, INT8 };
enum { GELU, SQUARED_RELU, SWIGLU };

typedef struct { const void *weight; const float *scale, *bias; } Linear; /* (out, in), (out), (out) */
typedef struct { const float *weight, *bias; float eps; } Norm;           /* weight NULL: there is no norm */
typedef struct {
    Norm attention_norm, query_norm, key_norm, mlp_norm;
    Linear qkv, out, up, down;
    /* model/streams/; NULL where they are off */
    const float *scales;                   /* (2): of what it reads, and of the normalised embedding */
    const float *skip;                     /* (1): of the output of block skip_from */
    const float *output_gate, *value_gate; /* (heads, hidden) */
    const float *value_table;              /* (vocab, hidden) */
    Linear value_projection;               /* of the normalised embedding */
    int32_t skip_from;
} Layer;

typedef struct {
    int32_t layers, hidden, heads, inner, vocab, window, slots, format, rms_norm, mlp, threads;
    int32_t embedding_norm, exclusive; /* exclusive: attention returns nothing along a token's own value */
    int32_t skips;                 /* blocks, from the first, whose outputs are added to later ones */
    int32_t context_tokens;        /* before each one, whose embeddings are added to its own: streams/context.py */
    const Linear *context;         /* (context_tokens), each (hidden, hidden); the nearest first */
    Norm unit;                     /* RMSNorm without weights: of ones */
    const float *embedding; /* (vocab, hidden) */
    const float *bigrams;   /* (bigram_rows, hidden) or NULL: streams/bigrams.py */
    int64_t bigram_rows;
    int64_t *read;          /* (slots, window): the tokens of each slot, for bigrams and context */
    const float *learned;   /* (window, hidden) or NULL */
    const float *rotary;    /* (2, window, head / 2): cosines, sines; or NULL */
    const Layer *layer;
    Norm final_norm;
    Linear head;
    float *keys, *values;   /* (layers, slots, heads, window, head) */
} Model;

/* latent/draft.py: a model whose `format` is that of these weights reads it. */
typedef struct {
    int32_t length, rank;
    Norm state_norm, token_norm, query_norm, out_norm;
    Linear query, recall, up, direct, down, after;
    const float *before; /* (vocab, rank) */
} Drafter;

#ifdef __AVX512F__
enum { LANES = 16, TOKENS = 4 }; /* of a vector; read at a time, as registers allow */
#else
enum { LANES = 8, TOKENS = 2 };
#endif
enum { AHEAD = 1024 }; /* bytes */
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));

static inline Vector load_fp32(const float *from) { return *(const Vector *)from; }
#if defined(__AVX512F__) /* gcc's own conversions go number by number */
static inline Vector load_bf16(const uint16_t *from) {
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from)), 16);
}
static inline Vector load_int8(const int8_t *from) {
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
}
#elif defined(__AVX2__)
static inline Vector load_bf16(const uint16_t *from) {
    return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from)), 16);
}
static inline Vector load_int8(const int8_t *from) {
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
}
#else
static inline Vector load_bf16(const uint16_t *from) {
    return (Vector)(__builtin_convertvector(*(const Halves *)from, Words) << 16);
}
static inline Vector load_int8(const int8_t *from) { return __builtin_convertvector(*(const Bytes *)from, Vector); }
#endif
static inline float one_fp32(float value) { return value; }
static inline float one_int8(int8_t value) { return value; }
static inline float one_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* y[i]: the sum of the numbers in v[i]. */
static inline void four_sums(const Vector *v, float *y) {
#if defined(__AVX2__)
    __m256 half[4];
    for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
        __m512d all = (__m512d)v[i];
        half[i] = (__m256)(_mm512_castpd512_pd256(all)) + (__m256)(_mm512_extractf64x4_pd(all, 1));
#else
        half[i] = (__m256)v[i];
#endif
    }
    __m256 two = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    _mm_storeu_ps(y, _mm256_castps256_ps128(two) + _mm256_extractf128_ps(two, 1));
#else
    for (int i = 0; i < 4; i++) {
        y[i] = 0;
        for (int lane = 0; lane < LANES; lane++) y[i] += v[i][lane];
    }
#endif
}

/* Four rows of weights, `apart` numbers from one to the next, by `count` vectors (count, k), count a constant:
   y[t][i] = sum_k w[i][k] x[t][k]. Each sum has its own accumulator, so that its order depends on k alone. What comes
   next in memory is fetched meanwhile: without that processors wait for memory first and multiply then, and four tokens
   take half as long again as one. */
#define PRODUCT(TYPE, FORMAT)                                                                                          \
    static inline __attribute__((always_inline)) void product_##FORMAT(const TYPE *w, int64_t apart, const float *x,   \
                                                                       int k, const int count, float (*y)[4]) {        \
        Vector sums[TOKENS][4] = {0};                                                                                  \
        int done = 0;                                                                                                  \
        for (; done + LANES <= k; done += LANES) {                                                                     \
            Vector from[TOKENS];                                                                                       \
            for (int t = 0; t < count; t++) from[t] = load_fp32(x + (int64_t)t * k + done);                            \
            for (int i = 0; i < 4; i++) {                                                                              \
                const TYPE *next = w + i * apart + done;                                                               \
                __builtin_prefetch((const char *)next + AHEAD);                                                        \
                Vector weights = load_##FORMAT(next);                                                                  \
                for (int t = 0; t < count; t++) sums[t][i] += weights * from[t];                                       \
            }                                                                                                          \
        }                                                                                                              \
        for (int t = 0; t < count; t++) {                                                                              \
            four_sums(sums[t], y[t]);                                                                                  \
            for (int i = 0; i < 4; i++) {                                                                              \
                for (int j = done; j < k; j++) y[t][i] += one_##FORMAT(w[i * apart + j]) * x[(int64_t)t * k + j];      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void products_##FORMAT(const void *w, int64_t apart, const float *x, int k, int count, float (*y)[4]) {     \
        if (count == 1) product_##FORMAT(w, apart, x, k, 1, y);                                                        \
        else if (count == 2) product_##FORMAT(w, apart, x, k, 2, y);                                                   \
        else if (count == 3) product_##FORMAT(w, apart, x, k, TOKENS < 3 ? TOKENS : 3, y);                             \
        else product_##FORMAT(w, apart, x, k, TOKENS, y);                                                              \
    }
PRODUCT(float, fp32)
PRODUCT(uint16_t, bf16)
PRODUCT(int8_t, int8)

/* x (n, in) -> y (n, out), or y += where `add`. The weights have rows up to a multiple of four, and are read as four
   streams, a quarter of the rows each: processors fetch long streams ahead, but not rows that lie side by side. */
static void linear(const Model *m, Linear linear, const float *x, int n, int in, float *y, int out, int add) {
    static const int bytes[] = {4, 2, 1};
    int quarter = (out + 3) / 4;
    #pragma omp for schedule(static)
    for (int first = 0; first < quarter; first++) {
        int count;
        int64_t apart = (int64_t)quarter * in;
        const void *w = (const char *)linear.weight + (int64_t)first * in * bytes[m->format];
        for (int token = 0; token < n; token += count) {
            float sums[TOKENS][4];
            const float *from = x + (int64_t)token * in;
            count = n - token < TOKENS ? n - token : TOKENS;
            if (m->format == FP32) products_fp32(w, apart, from, in, count, sums);
            else if (m->format == BF16) products_bf16(w, apart, from, in, count, sums);
            else products_int8(w, apart, from, in, count, sums);
            for (int t = 0; t < count; t++) {
                float *to = y + (int64_t)(token + t) * out;
                for (int i = 0, row = first; i < 4 && row < out; i++, row += quarter) {
                    float value = linear.scale ? sums[t][i] * linear.scale[row] : sums[t][i];
                    if (linear.bias) value += linear.bias[row];
                    to[row] = add ? to[row] + value : value;
                }
            }
        }
    }
}

static void normalise(Norm norm, int rms, const float *x, float *y, int width) {
    float mean = 0, squares = 0;
    if (!rms) {
        #pragma omp simd reduction(+ : mean)
        for (int i = 0; i < width; i++) mean += x[i];
        mean /= width;
    }
    #pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf(squares / width + norm.eps);
    for (int i = 0; i < width; i++) {
        float value = (x[i] - mean) * factor * norm.weight[i];
        y[i] = norm.bias ? value + norm.bias[i] : value;
    }
}

static void normalise_all(const Model *m, Norm norm, const float *x, float *y, int n) {
    #pragma omp for schedule(static)
    for (int token = 0; token < n; token++) {
        normalise(norm, m->rms_norm, x + (int64_t)token * m->hidden, y + (int64_t)token * m->hidden, m->hidden);
    }
}

/* One head's query or key (head,): normalised, then rotated to its position. */
static void place(const Model *m, Norm norm, float *x, int head, int position) {
    if (norm.weight) normalise(norm, 1, x, x, head);
    if (!m->rotary) return;
    int half = head / 2;
    const float *cosine = m->rotary + (int64_t)position * half, *sine = cosine + (int64_t)m->window * half;
    for (int i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosine[i] - second * sine[i];
        x[i + half] = second * cosine[i] + first * sine[i];
    }
}

/* One head of one token: query (head,) over the keys and values (position + 1, head) of its slot. */
static void attend(const float *query, const float *keys, const float *values, int head, int position, float *scores,
                   float *mixed) {
    float scale = 1 / sqrtf((float)head), largest = -INFINITY, total = 0;
    for (int t = 0; t <= position; t++) {
        float score = 0;
        const float *key = keys + (int64_t)t * head;
        #pragma omp simd reduction(+ : score)
        for (int i = 0; i < head; i++) score += query[i] * key[i];
        scores[t] = score * scale;
        largest = fmaxf(largest, scores[t]);
    }
    for (int t = 0; t <= position; t++) total += scores[t] = expf(scores[t] - largest);
    memset(mixed, 0, head * sizeof *mixed);
    for (int t = 0; t <= position; t++) {
        float share = scores[t] / total;
        const float *value = values + (int64_t)t * head;
        for (int i = 0; i < head; i++) mixed[i] += share * value[i];
    }
}

/* The row of the table of pairs for a token and the one before it, -1: none (streams/bigrams.py). */
static int64_t pair(const Model *m, int64_t previous, int64_t current) {
    int64_t mixed = ((previous + 1) * 0x9E3779B1LL) ^ ((current + 1) * 0x85EBCA6BLL);
    return (mixed ^ (mixed >> 15)) % m->bigram_rows;
}

/* A head's gate (width,) of what attention reads. */
static float gate_of(const float *gate, const float *normed, int width) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += gate[i] * normed[i];
    return 2 / (1 + expf(-sum));
}

static float gelu(float x) { return 0.5f * x * (1 + erff(x * (float)M_SQRT1_2)); }

static void activate(const Model *m, const float *up, float *inner, int n) {
    int width = m->inner;
    #pragma omp for schedule(static)
    for (int token = 0; token < n; token++) {
        const float *x = up + (int64_t)token * (m->mlp == SWIGLU ? 2 * width : width);
        float *y = inner + (int64_t)token * width;
        for (int i = 0; i < width; i++) {
            if (m->mlp == GELU) y[i] = gelu(x[i]);
            else if (m->mlp == SQUARED_RELU) y[i] = x[i] > 0 ? x[i] * x[i] : 0;
            else y[i] = x[i] / (1 + expf(-x[i])) * x[i + width];
        }
    }
}

/* y less its part along `own`: see without_own in attention.py. */
static void leave_out(const float *own, float *y, int n) {
    float product = 0, square = 0;
    for (int i = 0; i < n; i++) {
        product += y[i] * own[i];
        square += own[i] * own[i];
    }
    float along = product / fmaxf(square, 1e-12f);
    for (int i = 0; i < n; i++) y[i] -= along * own[i];
}

static int thread(void) {
#ifdef _OPENMP
    extern int omp_get_thread_num(void);
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Floats of scratch for n tokens. */
int64_t scratch_size(const Model *m, int n) {
    int64_t up = (m->mlp == SWIGLU ? 2 : 1) * (int64_t)m->inner;
    return n * ((8 + m->skips) * (int64_t)m->hidden + up + m->inner) + (int64_t)m->threads * m->window;
}

/* Reads n tokens, tokens of one slot in order, and writes the logits (wanted, vocab) of the last `wanted` ones. */
void forward(const Model *m, int n, const int64_t *tokens, const int32_t *slots, const int32_t *positions, int wanted,
             float *logits, float *scratch) {
    int width = m->hidden, head = width / m->heads;
    float *x = scratch, *normed = x + (int64_t)n * width, *qkv = normed + (int64_t)n * width;
    float *mixed = qkv + (int64_t)n * 3 * width, *inner = mixed + (int64_t)n * width;
    float *up = inner + (int64_t)n * m->inner;
    float *first = up + n * (m->mlp == SWIGLU ? 2 : 1) * (int64_t)m->inner; /* the embedding, normalised */
    float *values = first + (int64_t)n * width, *outputs = values + (int64_t)n * width;
    float *all_scores = outputs + (int64_t)m->skips * n * width;
    #pragma omp parallel num_threads(m->threads)
    {
        float *scores = all_scores + (int64_t)thread() * m->window;
        if (m->bigrams || m->context_tokens) {
            #pragma omp for schedule(static)
            for (int token = 0; token < n; token++) {
                m->read[(int64_t)slots[token] * m->window + positions[token]] = tokens[token];
            }
        }
        #pragma omp for schedule(static)
        for (int token = 0; token < n; token++) {
            const float *embedding = m->embedding + tokens[token] * width, *both = 0;
            if (m->bigrams) {
                const int64_t *before = m->read + (int64_t)slots[token] * m->window + positions[token] - 1;
                both = m->bigrams + pair(m, positions[token] ? *before : -1, tokens[token]) * width;
            }
            const float *learned = m->learned ? m->learned + (int64_t)positions[token] * width : 0;
            for (int i = 0; i < width; i++) {
                float value = both ? embedding[i] + both[i] : embedding[i];
                x[(int64_t)token * width + i] = learned ? value + learned[i] : value;
            }
        }
        for (int distance = 1; distance <= m->context_tokens; distance++) {
            #pragma omp for schedule(static)
            for (int token = 0; token < n; token++) {
                const int64_t *read = m->read + (int64_t)slots[token] * m->window + positions[token];
                float *earlier = normed + (int64_t)token * width;
                if (positions[token] < distance) memset(earlier, 0, width * sizeof *earlier);
                else memcpy(earlier, m->embedding + read[-distance] * width, width * sizeof *earlier);
            }
            linear(m, m->context[distance - 1], normed, n, width, x, width, 1);
        }
        #pragma omp for schedule(static)
        for (int token = 0; token < n; token++) {
            float *own = x + (int64_t)token * width;
            if (m->embedding_norm) normalise(m->unit, 1, own, own, width);
            if (m->unit.weight) normalise(m->unit, 1, own, first + (int64_t)token * width, width);
        }
        for (int number = 0; number < m->layers; number++) {
            const Layer *layer = m->layer + number;
            if (layer->skip || layer->scales) {
                const float *earlier = outputs + (int64_t)layer->skip_from * n * width;
                #pragma omp for schedule(static)
                for (int64_t i = 0; i < (int64_t)n * width; i++) {
                    float value = layer->skip ? x[i] + layer->skip[0] * earlier[i] : x[i];
                    x[i] = layer->scales ? layer->scales[0] * value + layer->scales[1] * first[i] : value;
                }
            }
            if (layer->value_projection.weight) linear(m, layer->value_projection, first, n, width, values, width, 0);
            normalise_all(m, layer->attention_norm, x, normed, n);
            linear(m, layer->qkv, normed, n, width, qkv, 3 * width, 0);
            #pragma omp for schedule(static)
            for (int job = 0; job < n * m->heads; job++) {
                int token = job / m->heads, h = job % m->heads, position = positions[token];
                int64_t cache = (((int64_t)number * m->slots + slots[token]) * m->heads + h) * m->window * head;
                float *query = qkv + (int64_t)token * 3 * width + h * head, *key = query + width;
                if (layer->value_gate) {
                    const float *added = layer->value_table ? layer->value_table + tokens[token] * width
                                                            : values + (int64_t)token * width;
                    float gate = gate_of(layer->value_gate + h * width, normed + (int64_t)token * width, width);
                    for (int i = 0; i < head; i++) key[width + i] += gate * added[h * head + i];
                }
                place(m, layer->query_norm, query, head, position);
                place(m, layer->key_norm, key, head, position);
                memcpy(m->keys + cache + (int64_t)position * head, key, head * sizeof *key);
                memcpy(m->values + cache + (int64_t)position * head, key + width, head * sizeof *key);
            }
            #pragma omp for schedule(static)
            for (int job = 0; job < n * m->heads; job++) {
                int token = job / m->heads, h = job % m->heads;
                int64_t cache = (((int64_t)number * m->slots + slots[token]) * m->heads + h) * m->window * head;
                attend(qkv + (int64_t)token * 3 * width + h * head, m->keys + cache, m->values + cache, head,
                       positions[token], scores, mixed + (int64_t)token * width + h * head);
                if (m->exclusive) {
                    leave_out(qkv + ((int64_t)token * 3 + 2) * width + h * head,
                              mixed + (int64_t)token * width + h * head, head);
                }
                if (layer->output_gate) {
                    float gate = gate_of(layer->output_gate + h * width, normed + (int64_t)token * width, width);
                    for (int i = 0; i < head; i++) mixed[(int64_t)token * width + h * head + i] *= gate;
                }
            }
            linear(m, layer->out, mixed, n, width, x, width, 1);
            normalise_all(m, layer->mlp_norm, x, normed, n);
            linear(m, layer->up, normed, n, width, up, m->mlp == SWIGLU ? 2 * m->inner : m->inner, 0);
            activate(m, up, inner, n);
            linear(m, layer->down, inner, n, m->inner, x, width, 1);
            if (number < m->skips) {
                #pragma omp for schedule(static)
                for (int64_t i = 0; i < (int64_t)n * width; i++) outputs[(int64_t)number * n * width + i] = x[i];
            }
        }
        normalise_all(m, m->final_norm, x, normed, n);
        linear(m, m->head, normed + (int64_t)(n - wanted) * width, wanted, width, logits, m->vocab, 0);
    }
}

/* Floats of scratch for `draft`. */
int64_t draft_scratch_size(const Model *m, const Drafter *d) {
    return (2 + 1 + 1 + 2 + d->length) * (int64_t)m->hidden + (int64_t)m->threads * m->window;
}

/* What may follow `token`, which follows the `read` tokens of a slot, the last of which left the state hidden (width):
   logits (length, vocab), without the Markov term. */
void draft(const Model *m, const Drafter *d, const float *hidden, int64_t token, int32_t slot, int32_t read,
           float *logits, float *scratch) {
    int width = m->hidden, head = width / m->heads;
    float *x = scratch, *query = x + 2 * width, *mixed = query + width, *inner = mixed + width;
    float *drafted = inner + 2 * width, *all_scores = drafted + (int64_t)d->length * width;
    normalise(d->state_norm, 0, hidden, x, width);
    normalise(d->token_norm, 0, m->embedding + token * width, x + width, width);
    #pragma omp parallel num_threads(m->threads)
    {
        float *scores = all_scores + (int64_t)thread() * m->window;
        linear(m, d->query, x, 1, 2 * width, query, width, 0);
        #pragma omp for schedule(static)
        for (int h = 0; h < m->heads; h++) {
            int64_t cache = (((int64_t)(m->layers - 1) * m->slots + slot) * m->heads + h) * m->window * head;
            place(m, d->query_norm, query + h * head, head, read);
            attend(query + h * head, m->keys + cache, m->values + cache, head, read - 1, scores, mixed + h * head);
        }
        linear(m, d->up, x, 1, 2 * width, inner, 2 * width, 0);
        linear(m, d->recall, mixed, 1, width, inner, 2 * width, 1);
        #pragma omp for schedule(static)
        for (int i = 0; i < 2 * width; i++) inner[i] = gelu(inner[i]);
        linear(m, d->direct, x, 1, 2 * width, drafted, d->length * width, 0);
        linear(m, d->down, inner, 1, 2 * width, drafted, d->length * width, 1);
        #pragma omp for schedule(static)
        for (int place = 0; place < d->length; place++) {
            normalise(d->out_norm, 1, drafted + place * width, drafted + place * width, width);
        }
        linear(m, m->head, drafted, d->length, width, logits, m->vocab, 0);
    }
}

/* Adds the Markov term to one place's logits (vocab): what the token before it says about it. */
void condition(const Model *m, const Drafter *d, int64_t previous, float *logits) {
    #pragma omp parallel num_threads(m->threads)
    linear(m, d->after, d->before + previous * d->rank, 1, d->rank, logits, m->vocab, 1);
}
