/* Matrix products in fp32: C (m, n) = A (m, k) B (k, n), or C += A B.

   Notable here
   - A block of A stays in the second cache and a panel of B in the first, both copied so that they are read in order
     (the scheme: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). A tile of C is
     summed in registers.
   - A and B may be transposed: one of their two strides is 1. Only copying depends on it, and how a tile reads A.
   - Threads have rows of C and copy all of B for themselves, so that they never wait for each other before the end,
     whatever else runs on the cores. Every element is summed in the same order whatever their number.
   - Vectors are as long as the compiler's target has them. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 8 };
#endif
enum {
    COLUMNS = 2 * LANES, /* of a tile */
    DEPTH = 256,         /* of a block: a panel of B, DEPTH x COLUMNS, takes half of the first cache */
    HEIGHT = 16 * ROWS,  /* rows of a block of A */
    WIDTH = 2048         /* columns of a block of B */
};

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A tile of C is set to a panel of A times one of B, or gets it added. Row r of the panel of A at depth p is at
   a[r * row_stride + p * depth_stride]; that of B is (depth, COLUMNS). */
static inline __attribute__((always_inline)) void tile(
    int64_t depth, const float *a, const int64_t row_stride, const int64_t depth_stride, const float *b,
    float *c, int64_t c_stride, int add) {
    Vector sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) {
        sums[r][0] = sums[r][1] = (Vector){0};
        __builtin_prefetch(c + r * c_stride, 1);
        __builtin_prefetch(c + r * c_stride + LANES, 1);
    }
    for (int64_t p = 0; p < depth; p++) {
        const Vector left = *(const Vector *)(b + p * COLUMNS), right = *(const Vector *)(b + p * COLUMNS + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const float x = a[r * row_stride + p * depth_stride];
            sums[r][0] += x * left;
            sums[r][1] += x * right;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        Loose *row = (Loose *)(c + r * c_stride);
        if (add) sums[r][0] += row[0], sums[r][1] += row[1];
        row[0] = sums[r][0], row[1] = sums[r][1];
    }
}

static void tile_of_rows(int64_t depth, const float *a, const float *b, float *c, int64_t c_stride, int add) {
    tile(depth, a, DEPTH, 1, b, c, c_stride, add);
}

static void tile_of_columns(int64_t depth, const float *a, const float *b, float *c, int64_t c_stride, int add) {
    tile(depth, a, 1, ROWS, b, c, c_stride, add);
}

/* Copies (rows, depth) of A, panel by panel: rows of DEPTH numbers where A has its rows one after the other, else
   (depth, ROWS). */
static void copy_a(const float *a, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth, float *to) {
    if (depth_stride == 1) {
        for (int64_t r = 0; r < rows; r++) memcpy(to + r * DEPTH, a + r * row_stride, depth * sizeof(float));
        return;
    }
    const int64_t whole = rows / ROWS;
    for (int64_t p = 0; p < depth; p++) {
        const float *from = a + p * depth_stride;
        for (int64_t i = 0; i < whole; i++)
            memcpy(to + i * ROWS * DEPTH + p * ROWS, from + i * ROWS, ROWS * sizeof(float));
        for (int64_t r = whole * ROWS; r < rows; r++) to[whole * ROWS * DEPTH + p * ROWS + r - whole * ROWS] = from[r];
    }
}

/* Copies (depth, columns) of B to panels (depth, COLUMNS), with zeros beside the last columns. */
static void copy_b(
    const float *b, int64_t depth_stride, int64_t column_stride, int64_t depth, int64_t columns, float *to) {
    const int64_t whole = columns / COLUMNS * COLUMNS;
    if (whole < columns) memset(to + whole * DEPTH, 0, depth * COLUMNS * sizeof(float));
    if (column_stride == 1) { /* row by row, which is how it lies in memory */
        for (int64_t p = 0; p < depth; p++) {
            const float *from = b + p * depth_stride;
            for (int64_t j = 0; j < whole; j += COLUMNS)
                memcpy(to + j * DEPTH + p * COLUMNS, from + j, COLUMNS * sizeof(float));
            for (int64_t j = whole; j < columns; j++) to[whole * DEPTH + p * COLUMNS + j - whole] = from[j];
        }
        return;
    }
    for (int64_t j = 0; j < columns; j++) {
        float *panel = to + j / COLUMNS * COLUMNS * DEPTH + j % COLUMNS;
        for (int64_t p = 0; p < depth; p++) panel[p * COLUMNS] = b[p * depth_stride + j * column_stride];
    }
}

/* One block: rows of C from a block of A (rows, depth) and `panels` panels of B. */
static void block(
    int64_t rows, int64_t columns, int64_t depth, const float *a, int by_rows, const float *b, float *c,
    int64_t c_stride, int add) {
    for (int64_t j = 0; j < columns; j += COLUMNS)
        for (int64_t i = 0; i < rows; i += ROWS) {
            const float *panel_a = a + i * DEPTH, *panel_b = b + j * DEPTH;
            float *to = c + i * c_stride + j, edge[ROWS * COLUMNS];
            const int64_t high = least(ROWS, rows - i), wide = least(COLUMNS, columns - j);
            const int whole = high == ROWS && wide == COLUMNS;
            (by_rows ? tile_of_rows : tile_of_columns)(
                depth, panel_a, panel_b, whole ? to : edge, whole ? c_stride : COLUMNS, whole && add);
            if (whole) continue;
            for (int64_t r = 0; r < high; r++)
                for (int64_t q = 0; q < wide; q++) {
                    float *one = to + r * c_stride + q;
                    *one = add ? *one + edge[r * COLUMNS + q] : edge[r * COLUMNS + q];
                }
        }
}

/* Rows of C by one thread; `memory` has room for a block of B and one of A. Strides: see sgemm. */
static void rows_of_c(
    int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_depth, const float *b, int64_t b_depth,
    int64_t b_column, float *c, int64_t c_stride, int add, float *block_of_b, float *block_of_a) {
    for (int64_t column = 0; column < n; column += WIDTH)
        for (int64_t p = 0; p < k; p += DEPTH) {
            const int64_t columns = least(WIDTH, n - column), depth = least(DEPTH, k - p);
            copy_b(b + p * b_depth + column * b_column, b_depth, b_column, depth, columns, block_of_b);
            for (int64_t i = 0; i < m; i += HEIGHT) {
                const int64_t rows = least(HEIGHT, m - i);
                copy_a(a + i * a_row + p * a_depth, a_row, a_depth, rows, depth, block_of_a);
                block(
                    rows, columns, depth, block_of_a, a_depth == 1, block_of_b, c + i * c_stride + column, c_stride,
                    add || p > 0);
            }
        }
}

/* A's element (i, p) is at a[i * a_row + p * a_depth], B's (p, j) at b[p * b_depth + j * b_column]; C has rows of
   c_stride numbers. Returns 0, or 1 where there is no memory: then C is as it was. */
int sgemm(
    int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_depth, const float *b, int64_t b_depth,
    int64_t b_column, float *c, int64_t c_stride, int add, int threads) {
    const int64_t of_b = (least(WIDTH, n) + COLUMNS - 1) / COLUMNS * COLUMNS * DEPTH, own = of_b + HEIGHT * DEPTH;
    const int64_t tiles = (m + ROWS - 1) / ROWS;
    float *memory = aligned_alloc(64, threads * own * sizeof(float));
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t first = tiles * thread / threads * ROWS, last = least(m, tiles * (thread + 1) / threads * ROWS);
        float *block_of_b = memory + thread * own;
        if (first < last)
            rows_of_c(
                last - first, n, k, a + first * a_row, a_row, a_depth, b, b_depth, b_column, c + first * c_stride,
                c_stride, add, block_of_b, block_of_b + of_b);
    }
    free(memory);
    return 0;
}
