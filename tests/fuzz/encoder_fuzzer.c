/* Fuzz the encoder of filetimer.h with libFuzzer.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
 *         -I c/include tests/fuzz/encoder_fuzzer.c -ljansson -lm -o encoder_fuzzer
 *
 * An input is HEAD bytes of numbers, then the scope. What must hold for each:
 *
 * E-1  The result is -EINVAL just for what SPEC section 3 forbids, else -EMSGSIZE
 *      just for a line that is longer than the buffer or than
 *      FILETIMER_RECORD_MAX, else the length of the line.
 * E-2  Nothing is written beyond the buffer, and nothing at all on an error.
 * E-3  The line is ASCII, ends with its only LF, and starts with the eleven
 *      bytes of SPEC R-2.
 * E-4  The line is JSON without repeated names, has just the fields that were
 *      asked for, and decodes (by jansson) to what went in: integers exactly,
 *      times to the microsecond, the scope as UTF-8 with U+FFFD for what is not.
 * E-5  A release and the acquire with the same numbers have the same bytes up to
 *      the time: what names the timer is written alike.
 * E-6  filetimer_to_us_ takes any double.
 *
 * With -DREPLAY this is a program that checks the files it is given, and prints
 * the line of each in hexadecimal, or its error: test_fuzz_corpus.py decodes
 * those lines with the Python decoder.
 */
#include <filetimer.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>

enum { HEAD = 64, SCOPE_MAX = 5000 };

#define REQUIRE(condition)                                                    \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
            abort();                                                          \
        }                                                                     \
    } while (0)

/* ------------------------------------------------------------------- input */

/* The head, little-endian as the machines that this runs on:
 * version i32, pid i32, signal i32, size u32, then expiration_us, deadline_us,
 * start_time, pid_ns, token, all i64, and a double that E-6 takes. */
typedef struct {
    filetimer_record record;
    size_t size;
    double seconds;
} input;

static int64_t take(const uint8_t **at, size_t bytes)
{
    int64_t wide = 0;
    int32_t narrow;
    memcpy(bytes == 4 ? (void *)&narrow : (void *)&wide, *at, bytes);
    *at += bytes;
    return bytes == 4 ? narrow : wide;
}

static input read_input(const uint8_t *data, size_t size)
{
    input in;
    in.record.version = (int)take(&data, 4);
    in.record.pid = (int)take(&data, 4);
    in.record.signal = (int)take(&data, 4);
    in.size = (size_t)take(&data, 4) % (2 * FILETIMER_RECORD_MAX);
    in.record.expiration_us = take(&data, 8);
    in.record.deadline_us = take(&data, 8);
    in.record.start_time = take(&data, 8);
    in.record.pid_ns = take(&data, 8);
    in.record.token = take(&data, 8);
    memcpy(&in.seconds, data, 8);
    in.record.scope = (const char *)data + 8;
    in.record.scope_length = size - HEAD;
    return in;
}

static int is_release(const filetimer_record *record)
{
    return record->expiration_us < 0;
}

/* SPEC; the comment of filetimer_encode. */
static int is_forbidden(const filetimer_record *r)
{
    const int64_t limit = (int64_t)1 << 53;
    return r->version < 1 || r->version > 2 || r->pid < 1 || r->scope_length == 0 ||
           (r->signal > 64 && !is_release(r)) || r->start_time >= limit || r->pid_ns >= limit ||
           r->token >= limit;
}

/* ------------------------------------------------------------------- scope */

/* Unicode's table 3-7, the well-formed sequences of UTF-8, as ranges of bytes. */
static const struct {
    unsigned char length, range[4][2];
} WELL_FORMED[] = {
    {2, {{0xc2, 0xdf}, {0x80, 0xbf}}},
    {3, {{0xe0, 0xe0}, {0xa0, 0xbf}, {0x80, 0xbf}}},
    {3, {{0xe1, 0xec}, {0x80, 0xbf}, {0x80, 0xbf}}},
    {3, {{0xed, 0xed}, {0x80, 0x9f}, {0x80, 0xbf}}},
    {3, {{0xee, 0xef}, {0x80, 0xbf}, {0x80, 0xbf}}},
    {4, {{0xf0, 0xf0}, {0x90, 0xbf}, {0x80, 0xbf}, {0x80, 0xbf}}},
    {4, {{0xf1, 0xf3}, {0x80, 0xbf}, {0x80, 0xbf}, {0x80, 0xbf}}},
    {4, {{0xf4, 0xf4}, {0x80, 0x8f}, {0x80, 0xbf}, {0x80, 0xbf}}},
};

/* How many bytes at `at` match a row: all of a character, or its longest part. */
static size_t matching(const unsigned char *at, const unsigned char *end, int *whole)
{
    size_t best = 1;
    *whole = *at < 0x80;
    for (size_t row = 0; row < sizeof WELL_FORMED / sizeof *WELL_FORMED; row++) {
        size_t n = 0;
        while (n < WELL_FORMED[row].length && at + n < end &&
               at[n] >= WELL_FORMED[row].range[n][0] && at[n] <= WELL_FORMED[row].range[n][1])
            n++;
        *whole |= n == WELL_FORMED[row].length;
        best = n > best ? n : best;
    }
    return best;
}

typedef struct {
    char text[3 * SCOPE_MAX]; /* U+FFFD is three bytes, for one */
    size_t length;
    size_t written; /* bytes of the JSON string, without its quotes */
} scope;

static void mend(const filetimer_record *record, scope *out)
{
    const unsigned char *at = (const unsigned char *)record->scope;
    const unsigned char *end = at + record->scope_length;
    out->length = out->written = 0;
    while (at < end) {
        int whole;
        const size_t n = matching(at, end, &whole);
        const char *text = whole ? (const char *)at : "\xef\xbf\xbd";
        const size_t length = whole ? n : 3;
        memcpy(out->text + out->length, text, length);
        out->length += length;
        if (n == 1 && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
            out->written += 1;
        else
            out->written += whole && n == 4 ? 12 : 6; /* \uXXXX, or a pair of them */
        at += n;
    }
}

/* ------------------------------------------------------------------ checks */

static size_t digits(int64_t value)
{
    return (size_t)snprintf(NULL, 0, "%lld", (long long)value);
}

static size_t optional(const char *name, int64_t value)
{
    return value < 0 ? 0 : strlen(", \"\": ") + strlen(name) + digits(value);
}

static size_t length_of(const filetimer_record *r, size_t scope_written)
{
    const int newer = r->version >= 2;
    size_t length = strlen("{\"version\": , \"pid\": , \"scope_id\": \"\", \"expiration_time\": , "
                           "\"signal\": }\n");
    length += digits(r->version) + digits(r->pid) + scope_written;
    length += is_release(r) ? strlen("-10") : digits(r->expiration_us / 1000000) + 7 +
                                                  digits(r->signal);
    if (newer && !is_release(r) && r->deadline_us >= 0)
        length += optional("deadline", r->deadline_us / 1000000) + 7;
    if (newer)
        length += optional("start_time", r->start_time) + optional("pid_ns", r->pid_ns) +
                  optional("token", r->token);
    return length;
}

static void check_integer(json_t *object, const char *name, int64_t value, size_t *fields)
{
    json_t *got = json_object_get(object, name);
    REQUIRE(json_is_integer(got) && json_integer_value(got) == value);
    ++*fields;
}

static void check_optional(json_t *object, const char *name, int64_t value, size_t *fields)
{
    if (value >= 0)
        check_integer(object, name, value, fields);
}

static void check_time(json_t *object, const char *name, int64_t us, size_t *fields)
{
    const double want = (double)((long double)us / 1000000);
    json_t *got = json_object_get(object, name);
    REQUIRE(json_is_real(got));
    REQUIRE(fabs(json_real_value(got) - want) <= nextafter(want, INFINITY) - want); /* 1 ulp */
    ++*fields;
}

static void check_json(const char *line, size_t length, const filetimer_record *r, const scope *s)
{
    const int newer = r->version >= 2;
    size_t fields = 1;
    json_error_t error;
    json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    json_t *text = json_object_get(object, "scope_id");
    REQUIRE(json_is_object(object));
    REQUIRE(json_is_string(text) && json_string_length(text) == s->length &&
            memcmp(json_string_value(text), s->text, s->length) == 0);
    check_integer(object, "version", r->version, &fields);
    check_integer(object, "pid", r->pid, &fields);
    if (is_release(r)) { /* SPEC R-9 */
        check_integer(object, "expiration_time", -1, &fields);
        check_integer(object, "signal", 0, &fields);
    } else {
        check_time(object, "expiration_time", r->expiration_us, &fields);
        check_integer(object, "signal", r->signal, &fields);
        if (newer && r->deadline_us >= 0)
            check_time(object, "deadline", r->deadline_us, &fields);
    }
    if (newer) {
        check_optional(object, "start_time", r->start_time, &fields);
        check_optional(object, "pid_ns", r->pid_ns, &fields);
        check_optional(object, "token", r->token, &fields);
    }
    REQUIRE(json_object_size(object) == fields);
    json_decref(object);
}

static void check_bytes(const char *line, size_t length)
{
    REQUIRE(length >= 11 && memcmp(line, "{\"version\":", 11) == 0);
    for (size_t i = 0; i + 1 < length; i++)
        REQUIRE((unsigned char)line[i] >= 0x20 && (unsigned char)line[i] < 0x80);
    REQUIRE(line[length - 1] == '\n');
}

static void check_names_alike(const char *line, size_t length, const filetimer_record *r)
{
    static const char key[] = "\", \"expiration_time\": "; /* a quote in a scope is escaped */
    char other[FILETIMER_RECORD_MAX];
    filetimer_record twin = *r;
    size_t start = 0;
    twin.expiration_us = is_release(r) ? 0 : -1;
    twin.signal = 0;
    if (filetimer_encode(other, sizeof other, &twin) < 0)
        return; /* the acquire is longer than its release, and may be too long */
    while (start + sizeof key - 1 <= length && memcmp(line + start, key, sizeof key - 1) != 0)
        start++;
    REQUIRE(start + sizeof key - 1 <= length);
    REQUIRE(memcmp(line, other, start + sizeof key - 1) == 0);
}

static int check(const input *in, char *buffer)
{
    static scope mended;
    const filetimer_record *r = &in->record;
    memset(buffer, 0x5a, in->size);
    const int result = filetimer_encode(buffer, in->size, r);

    mend(r, &mended);
    const size_t length = length_of(r, mended.written);
    if (is_forbidden(r))
        REQUIRE(result == -EINVAL);
    else if (length > FILETIMER_RECORD_MAX || length > in->size)
        REQUIRE(result == -EMSGSIZE);
    else
        REQUIRE(result == (int)length);
    for (size_t i = result > 0 ? (size_t)result : 0; i < in->size; i++)
        REQUIRE(buffer[i] == 0x5a); /* beyond the line, or on an error */
    if (result > 0) {
        check_bytes(buffer, length);
        check_json(buffer, length, r, &mended);
        check_names_alike(buffer, length, r);
    }
    return result;
}

static void check_seconds(double seconds)
{
    const int64_t us = filetimer_to_us_(seconds);
    REQUIRE(us >= -1 && us <= (int64_t)(FILETIMER_LONGEST * 1e6));
    REQUIRE((us >= 0) == (seconds >= 0));
    if (seconds >= 0 && seconds < FILETIMER_LONGEST)
        REQUIRE(fabs((double)us / 1e6 - seconds) <= 1.5e-6);
}

/* The scope is in a block of its own size, and so is the buffer: then the
 * sanitizer sees one byte too far. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD || size - HEAD > SCOPE_MAX)
        return -1;
    input in = read_input(data, size);
    char *scope_block = malloc(in.record.scope_length ? in.record.scope_length : 1);
    char *buffer = malloc(in.size ? in.size : 1);
    REQUIRE(scope_block && buffer);
    memcpy(scope_block, in.record.scope, in.record.scope_length);
    in.record.scope = scope_block;
#ifdef REPLAY
    const int result = check(&in, buffer);
    if (result < 0)
        printf("%d\n", result);
    for (int i = 0; i < result; i++)
        printf("%02x%s", (unsigned char)buffer[i], i + 1 == result ? "\n" : "");
#else
    check(&in, buffer);
#endif
    check_seconds(in.seconds);
    free(buffer);
    free(scope_block);
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv)
{
    static uint8_t data[HEAD + SCOPE_MAX + 1];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        REQUIRE(file != NULL);
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        if (LLVMFuzzerTestOneInput(data, size) < 0)
            puts("skipped");
    }
    return 0;
}
#else
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static size_t length_of_input(const uint8_t *data, size_t size)
{
    static scope mended;
    const input in = read_input(data, size);
    mend(&in.record, &mended);
    return length_of(&in.record, mended.written);
}

/* A buffer that just has room for the line, or just not. */
static void fit_buffer(uint8_t *data, size_t size, unsigned which)
{
    const uint32_t room = (uint32_t)length_of_input(data, size) - which % 2;
    memcpy(data + 12, &room, sizeof room);
}

/* A scope that just makes the line as long as it may be, or just too long. */
static size_t fit_scope(uint8_t *data, size_t size, size_t max_size, unsigned which)
{
    const size_t length = length_of_input(data, size), wanted = FILETIMER_RECORD_MAX + which % 2;
    const size_t more = length < wanted ? wanted - length : 0;
    const uint32_t room = FILETIMER_RECORD_MAX + 8;
    if (more > max_size - size)
        return size;
    memset(data + size, 'x', more);
    memcpy(data + 12, &room, sizeof room);
    return size + more;
}

/* Blind mutation makes few numbers that are allowed: put in one that matters. */
static void set_number(uint8_t *data, unsigned which)
{
    static const int64_t wide[] = {-1, 0, 1, 9, 99, 999999, 1000000, 9999999, 1767225600123456,
                                   ((int64_t)1 << 53) - 1, (int64_t)1 << 53, INT64_MAX, INT64_MIN};
    static const int32_t narrow[] = {-1, 0, 1, 2, 3, 9, 64, 65, 4096, 5000, 4242, INT32_MAX,
                                     INT32_MIN};
    const int64_t value = wide[which / 9 % (sizeof wide / sizeof *wide)];
    if (which % 9 < 5)
        memcpy(data + 16 + 8 * (which % 9), &value, sizeof value);
    else
        memcpy(data + 4 * (which % 9 - 5), &narrow[which / 9 % (sizeof narrow / sizeof *narrow)],
               sizeof *narrow);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    const unsigned which = seed >> 4;
    if (size < HEAD || size > HEAD + SCOPE_MAX || seed % 4 != 0)
        return LLVMFuzzerMutate(data, size, max_size);
    if (seed % 16 == 4)
        fit_buffer(data, size, which);
    else if (seed % 16 == 8)
        return fit_scope(data, size, max_size, which);
    else
        set_number(data, which);
    return size;
}
#endif
