/* A token drawn from each row of scores on a CPU, in one call: processing.py's `probabilities` and `draw`, which define it.

   Nothing is sorted. What top_k and top_p keep is found by halving the range of floats in which the bound must lie; each
   halving reads the row once, by vectors, and some fifteen are enough. Sums are in fp64. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, BLOCK = 256 };

/* exp(x) for x <= 0, within 2 units in the last place; written out because compilers make no vectors of expf. fmaf keeps
   the two halves of log(2) apart, which the compiler may add up otherwise. */
static inline float exponential(float x) {
    float whole = rintf(x * (float)M_LOG2E), rest = fmaf(whole, 2.12194440e-4f, fmaf(whole, -0.693359375f, x));
    float series = 1.9875691500e-4f; /* Cephes' expf */
    series = fmaf(series, rest, 1.3981999507e-3f);
    series = fmaf(series, rest, 8.3334519073e-3f);
    series = fmaf(series, rest, 4.1665795894e-2f);
    series = fmaf(series, rest, 1.6666665459e-1f);
    series = fmaf(series, rest, 5.0000001201e-1f);
    int32_t bits = (int32_t)((uint32_t)((int32_t)whole + 127) << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87 ? 0 : (1 + fmaf(series, rest * rest, rest)) * power;
}

static float largest(const float *x, int n) {
    float lanes[LANES], most = x[0];
    int done = 0;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = most;
    for (; done + LANES <= n; done += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            lanes[lane] = x[done + lane] > lanes[lane] ? x[done + lane] : lanes[lane];
        }
    }
    for (int lane = 0; lane < LANES; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    for (; done < n; done++) most = x[done] > most ? x[done] : most;
    return most;
}

static double sum(const float *x, int n) {
    double total = 0;
    #pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; i++) total += x[i];
    return total;
}

/* Of the numbers above a bound: how many there are, or their sum. */
static double measure_above(const float *x, int n, float bound, int counted) {
    if (counted) {
        int count = 0;
        #pragma omp simd reduction(+ : count)
        for (int i = 0; i < n; i++) count += x[i] > bound;
        return count;
    }
    double total = 0;
    #pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; i++) total += x[i] > bound ? x[i] : 0;
    return total;
}

/* Floats in their order as integers, and back. */
static int32_t order_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}
static float float_of(int32_t order) {
    int32_t bits = order < 0 ? order ^ INT32_MAX : order;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A number is kept if those greater than it measure less than `wanted`. Returns a bound with the kept ones above it,
   between `low`, where all numbers to be kept lie above, and `high`, above which there are none. */
static float bound_of(const float *x, int n, int counted, double wanted, float low, float high) {
    int32_t least = order_of(low), most = order_of(high);
    double above_least = measure_above(x, n, low, counted), above_most = 0;
    while (most - least > 1) {
        double smallest = counted ? 1 : float_of(least);
        if (above_least - above_most < 2 * smallest) break; /* one number is left in between, or none */
        int32_t middle = least + (most - least) / 2;
        double above = measure_above(x, n, float_of(middle), counted);
        if (above < wanted) most = middle, above_most = above;
        else least = middle, above_least = above;
    }
    return float_of(least);
}

/* Scores to `probabilities`, in place. */
static void keep(float *x, int size, float temperature, int64_t top_k, double top_p, float min_p) {
    float most = largest(x, size), bound = -INFINITY;
    for (int i = 0; i < size; i++) x[i] = (x[i] - most) / temperature;
    if (0 < top_k && top_k < size) bound = bound_of(x, size, 1, (double)top_k, -INFINITY, 0);
    for (int i = 0; i < size; i++) x[i] = x[i] <= bound ? 0 : exponential(x[i]);
    bound = top_p < 1 ? bound_of(x, size, 0, top_p * sum(x, size), 0, 1) : 0;
    for (int i = 0; i < size; i++) x[i] = x[i] <= bound || x[i] < min_p ? 0 : x[i]; /* NaN stays, and spoils the sums */
}

/* Where a score is NaN or positive infinity there is nothing to draw: `size`. Overwrites the scores. */
static int64_t draw_one(float *x, int size, float temperature, int64_t top_k, double top_p, float min_p,
                        double uniform) {
    keep(x, size, temperature, top_k, top_p, min_p);
    int blocks = (size + BLOCK - 1) / BLOCK, block = 0;
    double sums[blocks], before = 0; /* up to the end of each block: one adds them up by vectors, and looks into one */
    for (int i = 0; i < blocks; i++) {
        int first = i * BLOCK;
        sums[i] = before += sum(x + first, size - first < BLOCK ? size - first : BLOCK);
    }
    double target = uniform * before;
    while (sums[block] <= target) block++;
    before = block ? sums[block - 1] : 0;
    int64_t token = size;
    for (int i = block * BLOCK; i < size && before <= target; i++) {
        if (x[i] > 0) before += x[token = i];
    }
    return token;
}

/* scores (rows, size), uniforms (rows) in [0, 1) -> tokens (rows). */
void draw(float *scores, int rows, int size, float temperature, int64_t top_k, double top_p, float min_p,
          const double *uniforms, int64_t *tokens, int threads) {
    #pragma omp parallel for num_threads(threads) if (rows > 1)
    for (int row = 0; row < rows; row++) {
        tokens[row] =
            draw_one(scores + (int64_t)row * size, size, temperature, top_k, top_p, min_p, uniforms[row]);
    }
}

/* scores (rows, size) -> `probabilities` of each row, in place. */
void shares(float *scores, int rows, int size, float temperature, int64_t top_k, double top_p, float min_p,
            int threads) {
    #pragma omp parallel for num_threads(threads) if (rows > 1)
    for (int row = 0; row < rows; row++) keep(scores + (int64_t)row * size, size, temperature, top_k, top_p, min_p);
}
