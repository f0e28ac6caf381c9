/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What filetimer.h promises, in one process and without a server: the test holds
 * the reading end of the FIFO itself.
 *
 *     client_test            run everything
 *     client_test --list     the names of the tests
 *     client_test NAME       run one
 *
 * MASK_SIGPIPE=1 in the environment makes every client keep SIGPIPE off by the
 * signal mask instead of by pwritev2: all tests hold either way.
 *
 * Compiles as C99 and as C++11.
 */
#include <filetimer.h>

#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                             \
        }                                                                        \
    } while (0)

#define CHECK_EQUAL(left, right)                                                 \
    do {                                                                         \
        const long long l_ = (long long)(left), r_ = (long long)(right);                            \
        if (l_ != r_) {                                                          \
            fprintf(stderr, "%s:%d: %s is %lld, not %s = %lld\n", __FILE__,      \
                    __LINE__, #left, l_, #right, r_);                            \
            abort();                                                             \
        }                                                                        \
    } while (0)

/* ------------------------------------------------------------------ Fixture */

static char directory[256], fifo[300];
static int reader = -1;
static unsigned client_flags;
enum { TIME_LIMIT = 120 }; /* seconds for the whole program, which uses one */
static char text[1 << 20]; /* what read_all has read */

static void server_starts(void)
{
    reader = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(reader >= 0);
}

static void server_dies(void)
{
    close(reader);
    reader = -1;
}

/* Everything in the pipe into `text`; the number of lines */
static int read_all(void)
{
    size_t length = 0;
    int lines = 0;
    char *at;
    for (;;) {
        const ssize_t n = read(reader, text + length, sizeof text - 1 - length);
        if (n <= 0)
            break;
        length += (size_t)n;
    }
    text[length] = '\0';
    CHECK(length == 0 || text[length - 1] == '\n');
    for (at = text; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    return lines;
}

/* Fill the pipe so that not one more byte fits */
static void fill(void)
{
    static char line[4096];
    memset(line, '\n', sizeof line);
    while (write(reader, line, sizeof line) > 0)
        ;
    while (write(reader, line, 1) > 0)
        ;
}

static long long field(const char *line, const char *name)
{
    char key[64];
    const char *at;
    snprintf(key, sizeof key, "\"%s\": ", name);
    at = strstr(line, key);
    CHECK(at != NULL);
    return atoll(at + strlen(key));
}

static const char *second_line(void)
{
    return strchr(text, '\n') + 1;
}

static filetimer_client *a_client(void)
{
    static filetimer_client client;
    memset(&client, 0, sizeof client);
    CHECK_EQUAL(filetimer_init(&client, fifo, SIGKILL, client_flags), 1);
    return &client;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Run `body` in a child; its failure is ours */
static void in_a_child(void (*body)(void))
{
    int status = -1;
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        body();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_EQUAL(status, 0);
}

/* ----------------------------------------------------------------- Encoding */

static filetimer_record a_record(void)
{
    filetimer_record r;
    r.version = 2;
    r.pid = 4242;
    r.scope = "train.py#120";
    r.scope_length = strlen(r.scope);
    r.expiration_us = 1767225600123456;
    r.signal = 9;
    r.deadline_us = 12345678901;
    r.start_time = 123456;
    r.pid_ns = 4026531836;
    r.token = 123;
    return r;
}

static void expect_line(const filetimer_record *record, const char *expected)
{
    char line[FILETIMER_RECORD_MAX];
    const int length = filetimer_encode(line, sizeof line, record);
    CHECK(length > 0);
    if ((size_t)length != strlen(expected) || memcmp(line, expected, (size_t)length) != 0) {
        fprintf(stderr, "got  %.*swant %s", length, line, expected);
        abort();
    }
}

static void test_encode_acquire(void)
{
    filetimer_record r = a_record();
    expect_line(&r, "{\"version\": 2, \"pid\": 4242, \"scope_id\": \"train.py#120\", "
                    "\"expiration_time\": 1767225600.123456, \"signal\": 9, "
                    "\"deadline\": 12345.678901, \"start_time\": 123456, "
                    "\"pid_ns\": 4026531836, \"token\": 123}\n");
    r.version = 1;
    expect_line(&r, "{\"version\": 1, \"pid\": 4242, \"scope_id\": \"train.py#120\", "
                    "\"expiration_time\": 1767225600.123456, \"signal\": 9}\n");
}

static void test_encode_release(void)
{
    filetimer_record r = a_record();
    r.expiration_us = -1;
    expect_line(&r, "{\"version\": 2, \"pid\": 4242, \"scope_id\": \"train.py#120\", "
                    "\"expiration_time\": -1, \"signal\": 0, \"start_time\": 123456, "
                    "\"pid_ns\": 4026531836, \"token\": 123}\n");
}

static void test_encode_leaves_out_what_is_unknown(void)
{
    filetimer_record r = a_record();
    r.deadline_us = r.start_time = r.pid_ns = r.token = -1;
    expect_line(&r, "{\"version\": 2, \"pid\": 4242, \"scope_id\": \"train.py#120\", "
                    "\"expiration_time\": 1767225600.123456, \"signal\": 9}\n");
}

static void test_encode_extremes(void)
{
    filetimer_record r = a_record();
    r.pid = 2147483647;
    r.scope = "x";
    r.scope_length = 1;
    r.expiration_us = 0;
    r.signal = -2147483647 - 1;
    r.deadline_us = 999999;
    r.start_time = r.pid_ns = r.token = ((int64_t)1 << 53) - 1;
    expect_line(&r, "{\"version\": 2, \"pid\": 2147483647, \"scope_id\": \"x\", "
                    "\"expiration_time\": 0.000000, \"signal\": -2147483648, "
                    "\"deadline\": 0.999999, \"start_time\": 9007199254740991, "
                    "\"pid_ns\": 9007199254740991, \"token\": 9007199254740991}\n");
}

static void test_encode_refuses(void)
{
    char line[FILETIMER_RECORD_MAX];
    filetimer_record r = a_record();
    r.pid = 0;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EINVAL);
    r = a_record();
    r.signal = 65;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EINVAL);
    r = a_record();
    r.scope_length = 0;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EINVAL);
    r = a_record();
    r.token = (int64_t)1 << 53;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EINVAL);
    r = a_record();
    r.version = 0;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EINVAL);
    r = a_record();
    CHECK_EQUAL(filetimer_encode(line, 20, &r), -EMSGSIZE);
}

static void test_encode_length_limit(void)
{
    static char scope[1 << 16];
    char line[2 * FILETIMER_RECORD_MAX];
    filetimer_record r = a_record();
    size_t fixed;
    memset(scope, 's', sizeof scope);
    r.scope = scope;
    r.scope_length = 1;
    fixed = (size_t)filetimer_encode(line, sizeof line, &r) - 1;
    r.scope_length = FILETIMER_RECORD_MAX - fixed;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), FILETIMER_RECORD_MAX);
    CHECK_EQUAL(filetimer_encode(line, FILETIMER_RECORD_MAX - 1, &r), -EMSGSIZE);
    r.scope_length++;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EMSGSIZE);
    r.scope_length = sizeof scope;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EMSGSIZE);
    memset(scope, '\xf0', sizeof scope); /* each becomes six bytes */
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EMSGSIZE);
    r.expiration_us = -1;
    CHECK_EQUAL(filetimer_encode(line, sizeof line, &r), -EMSGSIZE);
}

static void test_encode_scope(void)
{
    filetimer_record r = a_record();
    r.version = 1;
    r.expiration_us = -1;
    r.scope = "\"\\\n\x7f z\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80|\xff|\xed\xa0\x80|\xe2\x82";
    r.scope_length = strlen(r.scope);
    expect_line(&r, "{\"version\": 1, \"pid\": 4242, \"scope_id\": \""
                    "\\u0022\\u005c\\u000a\x7f z\\u00e9\\u20ac\\ud83d\\ude00|\\ufffd|"
                    "\\ufffd\\ufffd\\ufffd|\\ufffd"
                    "\", \"expiration_time\": -1, \"signal\": 0}\n");
}

static void test_prepare_describes_this_process(void)
{
    filetimer_record r;
    struct stat ns;
    filetimer_prepare(&r, "x");
    CHECK_EQUAL(r.pid, getpid());
    CHECK_EQUAL(r.scope_length, 1);
#if defined(__linux__)
    CHECK(stat("/proc/self/ns/pid", &ns) == 0);
    CHECK_EQUAL(r.pid_ns, ns.st_ino);
    CHECK(r.start_time > 0);
#endif
}

/* ---------------------------------------------------------- The wire, alive */

static void test_acquire_and_release(void)
{
    filetimer_client *client = a_client();
    struct timespec wall;
    CHECK_EQUAL(filetimer_acquire(client, "scope", 60), 1);
    CHECK_EQUAL(filetimer_release(client, "scope"), 1);
    CHECK_EQUAL(read_all(), 2);
    CHECK(strncmp(text, "{\"version\": 2, \"pid\": ", 22) == 0);
    CHECK_EQUAL(field(text, "pid"), getpid());
    CHECK_EQUAL(field(text, "signal"), SIGKILL);
    CHECK_EQUAL(field(second_line(), "signal"), 0);
    CHECK_EQUAL(field(second_line(), "expiration_time"), -1);
    CHECK(llabs(field(text, "deadline") - (long long)(now() + 60)) <= 1);
    clock_gettime(CLOCK_REALTIME, &wall);
    CHECK(llabs(field(text, "expiration_time") - (wall.tv_sec + 60)) <= 1);
    CHECK(strstr(text, "token") == NULL);
    CHECK(strstr(second_line(), "deadline") == NULL);
    filetimer_close(client);
    CHECK_EQUAL(filetimer_acquire(client, "scope", 60), 0);
}

static void test_handle(void)
{
    filetimer_client *client = a_client();
    filetimer_handle a, b;
    CHECK_EQUAL(filetimer_begin(&a, client, "same", 60), 1);
    CHECK_EQUAL(filetimer_begin(&b, client, "same", 60), 1);
    CHECK(a.token != b.token && a.armed && b.armed && !a.error);
    CHECK_EQUAL(read_all(), 2);
    CHECK_EQUAL(field(text, "token"), a.token);
    CHECK_EQUAL(field(second_line(), "token"), b.token);
    CHECK_EQUAL(filetimer_extend(&a, 120), 1);
    CHECK_EQUAL(filetimer_end(&a), 1);
    CHECK_EQUAL(read_all(), 2);
    CHECK_EQUAL(field(text, "token"), a.token);
    CHECK(llabs(field(text, "deadline") - (long long)(now() + 120)) <= 1);
    CHECK_EQUAL(field(second_line(), "token"), a.token);
    CHECK_EQUAL(field(second_line(), "expiration_time"), -1);
    CHECK_EQUAL(filetimer_end(&a), 0); /* once is enough */
    CHECK_EQUAL(read_all(), 0);
    CHECK_EQUAL(filetimer_try_end(&b), 1);
    filetimer_close(client);
}

static int ends_with(const char *line, const char *end)
{
    const char *newline = strchr(line, '\n');
    const size_t length = strlen(end);
    return newline != NULL && (size_t)(newline - line) >= length &&
           strncmp(newline - length, end, length) == 0;
}

static void test_attributes(void)
{
    filetimer_client *client = a_client();
    filetimer_attributes all = {0}, one;
    filetimer_handle handle;
    CHECK_EQUAL(filetimer_attribute_int(&all, "rank", -3), 1);
    one = all;
    CHECK_EQUAL(filetimer_attribute_string(&one, "a \"name\"", "50 % \xc3\xa9\n"), 1);
    CHECK_EQUAL(filetimer_set_attributes(client, &all), 1);
    all.length_ = 0; /* it was copied */
    CHECK_EQUAL(filetimer_acquire(client, "scope", 60), 1);
    CHECK_EQUAL(filetimer_release(client, "scope"), 1);
    CHECK_EQUAL(read_all(), 2);
    CHECK(ends_with(text, ", \"attributes\": {\"rank\": -3}}"));
    CHECK(strstr(second_line(), "attributes") == NULL); /* SPEC R-12 */
    CHECK_EQUAL(filetimer_begin_with(&handle, client, "scope", 60, &one), 1);
    CHECK_EQUAL(filetimer_extend(&handle, 60), 1);
    CHECK_EQUAL(read_all(), 2);
    CHECK_EQUAL(field(text, "token"), handle.token);
    CHECK(ends_with(text, ", \"attributes\": {\"rank\": -3, \"a \\u0022name\\u0022\": "
                          "\"50 % \\u00e9\\u000a\"}}"));
    CHECK(ends_with(second_line(), "\\u000a\"}}"));
    CHECK_EQUAL(filetimer_end(&handle), 1);
    CHECK_EQUAL(read_all(), 1);
    CHECK(strstr(text, "attributes") == NULL);
    CHECK_EQUAL(filetimer_set_attributes(client, NULL), 1);
    CHECK_EQUAL(filetimer_begin(&handle, client, "scope", 60), 1);
    CHECK_EQUAL(read_all(), 1);
    CHECK(strstr(text, "attributes") == NULL);
    filetimer_close(client);
    CHECK_EQUAL(filetimer_set_attributes(client, &all), 0);
}

static void test_attributes_have_limits(void)
{
    filetimer_attributes full = {0}, many = {0}, before;
    char long_text[2 * FILETIMER_ATTRIBUTES_MAX], name[2] = "a";
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = '\0';
    CHECK_EQUAL(filetimer_attribute_string(&full, "a", long_text), -EMSGSIZE);
    CHECK_EQUAL(filetimer_attribute_int(&full, long_text, 1), -EMSGSIZE);
    memset(long_text, '\n', sizeof long_text - 1); /* six bytes each */
    CHECK_EQUAL(filetimer_attribute_string(&full, "a", long_text), -EMSGSIZE);
    CHECK_EQUAL(filetimer_attribute_int(&full, long_text, 1), -EMSGSIZE);
    CHECK_EQUAL(full.length_, 0);
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[FILETIMER_ATTRIBUTES_MAX - 8] = '\0'; /* with {"a": ""} around them: one too many */
    CHECK_EQUAL(filetimer_attribute_string(&full, "a", long_text), -EMSGSIZE);
    long_text[FILETIMER_ATTRIBUTES_MAX - 9] = '\0';
    CHECK_EQUAL(filetimer_attribute_string(&full, "a", long_text), 1);
    CHECK_EQUAL(full.length_, FILETIMER_ATTRIBUTES_MAX - 2);
    CHECK_EQUAL(filetimer_attribute_int(&full, "b", 1), -EMSGSIZE);
    for (; name[0] < 'i'; name[0]++)
        CHECK_EQUAL(filetimer_attribute_int(&many, name, name[0]), 1);
    before = many;
    CHECK_EQUAL(filetimer_attribute_int(&many, "i", 1), -EMSGSIZE);
    CHECK_EQUAL(filetimer_attribute_int(&many, "a", 1), -EEXIST);
    CHECK_EQUAL(filetimer_attribute_int(&many, "", 1), -EINVAL);
    CHECK_EQUAL(filetimer_attribute_int(&many, NULL, 1), -EINVAL);
    CHECK_EQUAL(filetimer_attribute_string(&many, "a", NULL), -EINVAL);
    CHECK_EQUAL(filetimer_attribute_int(&many, "n", (int64_t)1 << 53), -EINVAL);
    CHECK_EQUAL(filetimer_attribute_int(&many, "n", INT64_MIN), -EINVAL);
    CHECK(memcmp(&many, &before, sizeof many) == 0);
}

static void test_attributes_that_make_a_record_too_long(void)
{
    static char scope[FILETIMER_RECORD_MAX];
    filetimer_client *client = a_client();
    filetimer_attributes attributes = {0};
    filetimer_handle handle;
    memset(scope, 's', FILETIMER_RECORD_MAX - 250);
    CHECK_EQUAL(filetimer_attribute_string(&attributes, "a", "forty bytes more, or a few more than "
                                                             "that"), 1);
    CHECK_EQUAL(filetimer_begin(&handle, client, scope, 60), 1);
    CHECK_EQUAL(filetimer_begin_with(&handle, client, scope, 60, &attributes), -EMSGSIZE);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(client);
}

static void test_bad_arguments(void)
{
    filetimer_client *client = a_client();
    filetimer_client other;
    filetimer_handle h;
    static char long_path[FILETIMER_PATH_MAX + 1];
    volatile double zero = 0;
    CHECK_EQUAL(filetimer_acquire(client, "", 1), -EINVAL);
    CHECK_EQUAL(filetimer_acquire(client, NULL, 1), -EINVAL);
    CHECK_EQUAL(filetimer_release(client, ""), -EINVAL);
    CHECK_EQUAL(filetimer_acquire(client, "x", -1), -EINVAL);
    CHECK_EQUAL(filetimer_acquire(client, "x", zero / zero), -EINVAL);
    CHECK_EQUAL(filetimer_begin(&h, client, "", 1), -EINVAL);
    CHECK_EQUAL(filetimer_end(&h), 0);
    CHECK_EQUAL(read_all(), 0);
    CHECK_EQUAL(filetimer_acquire(client, "x", 1 / zero), 1); /* as long as may be */
    CHECK_EQUAL(filetimer_acquire(client, "x", 0), 1);
    CHECK_EQUAL(read_all(), 2);
    CHECK_EQUAL(filetimer_init(&other, fifo, 65, 0), -EINVAL);
    memset(long_path, 'x', sizeof long_path - 1);
    CHECK_EQUAL(filetimer_init(&other, long_path, 9, 0), -ENAMETOOLONG);
    CHECK_EQUAL(filetimer_acquire(&other, "x", 1), 0);
    filetimer_close(client);
}

static void test_too_long_a_scope(void)
{
    filetimer_client *client = a_client();
    static char scope[8192];
    memset(scope, 'a', sizeof scope - 1);
    errno = 42;
    CHECK_EQUAL(filetimer_acquire(client, scope, 1), -EMSGSIZE);
    CHECK_EQUAL(filetimer_release(client, scope), -EMSGSIZE);
    CHECK_EQUAL(errno, 42);
    CHECK_EQUAL(read_all(), 0);
    filetimer_close(client);
}

static void test_locale_changes_nothing(void)
{
    filetimer_client *client = a_client();
    char comma[32];
    if (setlocale(LC_ALL, "de_DE.UTF-8") != NULL) {
        snprintf(comma, sizeof comma, "%.1f", 0.5);
#if defined(__GLIBC__) /* musl accepts any name, and keeps the point */
        CHECK(strcmp(comma, "0,5") == 0);
#endif
    } else {
        CHECK(getenv("CI") == NULL); /* generate the locale there */
    }
    test_encode_acquire();
    CHECK_EQUAL(filetimer_acquire(client, "x", 1.5), 1);
    CHECK_EQUAL(read_all(), 1);
    CHECK(strchr(strstr(text, "expiration_time") + 18, '.') <
          strchr(strstr(text, "expiration_time") + 18, ','));
    setlocale(LC_ALL, "C");
    filetimer_close(client);
}

/* ----------------------------------------------------- What is at the path */

static void test_server_comes_later(void)
{
    filetimer_client client;
    server_dies();
    unlink(fifo);
    CHECK_EQUAL(filetimer_init(&client, fifo, SIGKILL, client_flags), -ENOENT);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), -ENOENT);
    CHECK(mkfifo(fifo, 0600) == 0);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), -EPIPE); /* nobody reads it yet */
    server_starts();
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), 1);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(&client);
}

static void test_refuses_what_is_not_a_fifo(void)
{
    filetimer_client client;
    char path[300], content[8];
    int fd;
    snprintf(path, sizeof path, "%s/file", directory);
    fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(write(fd, "precious", 8) == 8);
    CHECK_EQUAL(filetimer_init(&client, path, SIGKILL, client_flags), -EINVAL);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), -EINVAL);
    CHECK(pread(fd, content, 8, 0) == 8 && memcmp(content, "precious", 8) == 0);
    close(fd);
    unlink(path);
    CHECK_EQUAL(filetimer_init(&client, "/dev/null", SIGKILL, client_flags), -EINVAL);
    CHECK_EQUAL(filetimer_init(&client, directory, SIGKILL, client_flags), -EINVAL);
}

static void test_refuses_a_foreign_owner(void)
{
    filetimer_client client;
    if (geteuid() != 0 || chown(fifo, 12345, 12345) != 0)
        return; /* only root can give a FIFO away */
    CHECK_EQUAL(filetimer_init(&client, fifo, SIGKILL, client_flags), -EPERM);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), -EPERM);
    CHECK(chown(fifo, 0, 0) == 0);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), 1);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(&client);
}

static void test_descriptor(void)
{
    filetimer_client *client = a_client();
    CHECK(client->fd_ > STDERR_FILENO);
    CHECK(fcntl(client->fd_, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(client->fd_, F_GETFL) & O_NONBLOCK);
    filetimer_close(client);
}

static void with_closed_standard_streams(void)
{
    filetimer_client *client;
    close(0);
    close(1);
    client = a_client();
    CHECK(client->fd_ > STDERR_FILENO);
    CHECK(fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0);
}

static void test_descriptor_stays_off_standard_streams(void)
{
    in_a_child(with_closed_standard_streams);
}

/* ------------------------------------------------- Servers that come and go */

static void test_server_restarts(void)
{
    filetimer_client *client = a_client();
    const int number = client->fd_;
    int i;
    for (i = 0; i < 5; i++) {
        server_dies();
        errno = 42;
        CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE);
        CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE);
        CHECK_EQUAL(errno, 42);
        if (i % 2) {
            unlink(fifo);
            CHECK_EQUAL(filetimer_acquire(client, "x", 1), -ENOENT);
            CHECK(mkfifo(fifo, 0600) == 0);
        }
        server_starts();
        CHECK_EQUAL(filetimer_acquire(client, "x", 1), 1);
        CHECK_EQUAL(read_all(), 1);
        CHECK_EQUAL(client->fd_, number);
        CHECK(fcntl(number, F_GETFD) & FD_CLOEXEC);
    }
    filetimer_close(client);
}

/* What torch's server needs: end of file after each record */
static void test_one_shot(void)
{
    static filetimer_client client;
    filetimer_handle timer;
    char byte;
    int eof;
    client_flags |= FILETIMER_ONE_SHOT;
    server_dies();
    reader = open(fifo, O_RDONLY | O_NONBLOCK);
    CHECK_EQUAL(filetimer_init(&client, fifo, SIGKILL, client_flags), 1);
    CHECK_EQUAL(filetimer_begin(&timer, &client, "x", 60), 1);
    CHECK_EQUAL(filetimer_end(&timer), 1);
    CHECK_EQUAL(read_all(), 2);
    eof = (int)read(reader, &byte, 1);
    CHECK_EQUAL(eof, 0); /* and not "nothing there yet" */
    server_dies();
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), -EPIPE);
    server_starts();
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), 1);
    read_all();
    fill();
    CHECK_EQUAL(filetimer_acquire(&client, "x", 0.02), -EAGAIN);
    CHECK_EQUAL(filetimer_try_acquire(&client, "x", 1), -EAGAIN);
    read_all();
    filetimer_close(&client);
    client_flags &= ~FILETIMER_ONE_SHOT;
}

static void test_closed_by_somebody(void)
{
    filetimer_client *client = a_client();
    close(client->fd_);
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), 1);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(client);
}

/* ------------------------------------------------------------------ SIGPIPE */

static void test_no_sigpipe_by_default_action(void)
{
    filetimer_client *client = a_client();
    signal(SIGPIPE, SIG_DFL);
    server_dies();
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE); /* and we live */
    filetimer_close(client);
    server_starts();
}

static volatile sig_atomic_t pipe_signals;

static void count_pipe_signal(int number)
{
    (void)number;
    pipe_signals = pipe_signals + 1;
}

static void test_own_sigpipe_stays_pending(void)
{
    filetimer_client *client = a_client();
    sigset_t only, before, after;
    signal(SIGPIPE, count_pipe_signal);
    pipe_signals = 0;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);

    server_dies();
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE); /* unblocked: nothing comes */
    CHECK_EQUAL(pipe_signals, 0);

    pthread_sigmask(SIG_BLOCK, &only, &before);
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE); /* blocked: nothing is left */
    sigpending(&after);
    CHECK(!sigismember(&after, SIGPIPE));
    raise(SIGPIPE);
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), -EPIPE); /* the host's own one stays */
    sigpending(&after);
    CHECK(sigismember(&after, SIGPIPE));
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    CHECK(sigismember(&after, SIGPIPE)); /* the mask is as it was */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK_EQUAL(pipe_signals, 1);

    filetimer_close(client);
    signal(SIGPIPE, SIG_DFL);
    server_starts();
}

/* A kernel without RWF_NOSIGNAL is one on which the flag gets set by itself. */
static void test_path_taken(void)
{
    filetimer_client *client = a_client();
    CHECK_EQUAL(filetimer_acquire(client, "x", 1), 1);
    if (getenv("EXPECT_NOSIGNAL") != NULL)
        CHECK_EQUAL(client->flags_, client_flags);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(client);
}

/* ---------------------------------------------------------------- Full pipe */

static void test_full_pipe_is_waited_for_in_bounds(void)
{
    filetimer_client *client = a_client();
    double start;
    fill();
    filetimer_set_wait(client, 0.05);
    start = now();
    errno = 42;
    CHECK_EQUAL(filetimer_acquire(client, "x", 60), -EAGAIN);
    CHECK(now() - start >= 0.049 && now() - start < 10);
    CHECK_EQUAL(errno, 42);
    filetimer_set_wait(client, 600);
    start = now();
    CHECK_EQUAL(filetimer_acquire(client, "x", 0.05), -EAGAIN); /* no longer than its timer */
    CHECK(now() - start >= 0.049 && now() - start < 10);
    CHECK_EQUAL(filetimer_try_acquire(client, "x", 60), -EAGAIN);
    CHECK_EQUAL(filetimer_try_release(client, "x"), -EAGAIN);
    CHECK_EQUAL(filetimer_release_n(client, "x", 1, 0.01), -EAGAIN);
    read_all();
    filetimer_close(client);
}

static void test_end_waits_for_what_the_timer_has_left(void)
{
    filetimer_client *client = a_client();
    filetimer_handle timer, longer;
    double start;
    CHECK_EQUAL(filetimer_begin(&longer, client, "y", 60), 1);
    start = now();
    CHECK_EQUAL(filetimer_begin(&timer, client, "x", 0.2), 1);
    fill();
    CHECK_EQUAL(filetimer_try_end(&longer), -EAGAIN); /* without a wait */
    CHECK_EQUAL(filetimer_end(&timer), -EAGAIN);
    CHECK(now() - start >= 0.199 && now() - start < 10);
    CHECK(timer.armed);
    read_all();
    CHECK_EQUAL(filetimer_end(&timer), 1); /* it may be tried again */
    CHECK_EQUAL(filetimer_end(&longer), 1);
    CHECK_EQUAL(read_all(), 2);
    filetimer_close(client);
}

static void test_an_undelivered_acquire_needs_no_release(void)
{
    filetimer_client *client = a_client();
    filetimer_handle timer;
    double start;
    fill();
    CHECK_EQUAL(filetimer_try_begin(&timer, client, "x", 600), -EAGAIN);
    CHECK(!timer.armed && timer.error == -EAGAIN);
    start = now();
    CHECK_EQUAL(filetimer_end(&timer), 0);
    CHECK(now() - start < 10);
    CHECK_EQUAL(filetimer_try_extend(&timer, 600), -EAGAIN);
    read_all();
    CHECK_EQUAL(filetimer_extend(&timer, 600), 1); /* room again: now it is armed */
    CHECK(timer.armed && !timer.error);
    CHECK_EQUAL(filetimer_end(&timer), 1);
    CHECK_EQUAL(read_all(), 2);
    filetimer_close(client);
}

static void *drain_in_a_moment(void *unused)
{
    poll(NULL, 0, 50);
    read_all();
    return unused;
}

static void test_room_ends_the_wait(void)
{
    filetimer_client *client = a_client();
    pthread_t thread;
    fill();
    filetimer_set_wait(client, 60);
    CHECK(pthread_create(&thread, NULL, drain_in_a_moment, NULL) == 0);
    CHECK_EQUAL(filetimer_acquire(client, "x", 60), 1);
    pthread_join(thread, NULL);
    read_all();
    filetimer_close(client);
}

/* ---------------------------------------------------------------- Processes */

static filetimer_client *shared_client;
static filetimer_handle shared_timer;

static void child_speaks_for_itself(void)
{
    CHECK_EQUAL(filetimer_extend(&shared_timer, 1), -ECHILD);
    CHECK_EQUAL(filetimer_end(&shared_timer), -ECHILD);
    CHECK_EQUAL(filetimer_acquire(shared_client, "child", 1), 1);
}

static void test_fork(void)
{
    int64_t start_time;
    shared_client = a_client();
    CHECK_EQUAL(filetimer_begin(&shared_timer, shared_client, "parent", 60), 1);
    CHECK_EQUAL(read_all(), 1);
    CHECK_EQUAL(field(text, "pid"), getpid());
    start_time = field(text, "start_time");
    poll(NULL, 0, 30); /* start times tick in 10 ms */
    in_a_child(child_speaks_for_itself);
    CHECK_EQUAL(read_all(), 1);
    CHECK(strstr(text, "child") != NULL);
    CHECK(field(text, "pid") != getpid());
    CHECK(field(text, "start_time") > start_time);
    CHECK_EQUAL(filetimer_end(&shared_timer), 1);
    CHECK_EQUAL(read_all(), 1);
    CHECK_EQUAL(field(text, "pid"), getpid());
    filetimer_close(shared_client);
}

#if FILETIMER_LINUX_FAST && defined(SYS_clone) && !defined(__s390__)
/* A raw clone runs no pthread_atfork handler */
static void test_clone(void)
{
    int status = -1;
    pid_t pid;
    shared_client = a_client();
    CHECK_EQUAL(filetimer_begin(&shared_timer, shared_client, "parent", 60), 1);
    read_all();
    pid = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
    CHECK(pid >= 0);
    if (pid == 0) {
        child_speaks_for_itself();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK_EQUAL(read_all(), 1);
    CHECK_EQUAL(field(text, "pid"), pid);
    filetimer_close(shared_client);
}
#else
static void test_clone(void) {}
#endif

static void another_file_on_our_number(void)
{
    const int number = shared_client->fd_;
    char path[300];
    struct stat file;
    int fd;
    snprintf(path, sizeof path, "%s/checkpoint", directory);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(dup2(fd, number) == number);
    CHECK_EQUAL(filetimer_acquire(shared_client, "child", 1), 1);
    CHECK(shared_client->fd_ != number);
    CHECK(fcntl(number, F_GETFD) >= 0); /* not ours to close */
    CHECK(fstat(number, &file) == 0 && file.st_size == 0);
    unlink(path);
}

static void test_child_that_reused_the_number(void)
{
    shared_client = a_client();
    in_a_child(another_file_on_our_number);
    CHECK_EQUAL(read_all(), 1);
    filetimer_close(shared_client);
}

/* -------------------------------------------------------- Environment, default */

static void default_is_not_configured(void)
{
    filetimer_handle timer;
    int runs = 0;
    CHECK_EQUAL(filetimer_acquire(NULL, "x", 1), 0);
    CHECK_EQUAL(filetimer_release(NULL, "x"), 0);
    CHECK_EQUAL(filetimer_begin(&timer, NULL, "x", 1), 0);
    CHECK_EQUAL(filetimer_extend(&timer, 1), 0);
    CHECK_EQUAL(filetimer_end(&timer), 0);
    CHECK_EQUAL(filetimer_configured(NULL), 0);
    FILETIMER_EXPIRES(1)
        runs++;
    CHECK_EQUAL(runs, 1);
    CHECK_EQUAL(filetimer_configure(fifo, 9, 0), -EBUSY); /* too late */
}

static void default_from_environment(void)
{
    CHECK_EQUAL(filetimer_acquire(NULL, "x", 1), 1);
    CHECK_EQUAL(filetimer_configured(filetimer_default()), 1);
}

static void default_for_torch(void)
{
    default_from_environment();
    CHECK(filetimer_default()->fd_ < 0); /* not kept open */
}

static void default_configured_by_hand(void)
{
    CHECK_EQUAL(filetimer_configure(fifo, SIGTERM, client_flags), 1);
    CHECK_EQUAL(filetimer_acquire(NULL, "x", 1), 1);
}

static void test_environment(void)
{
    filetimer_client client;
    unsetenv("FILETIMER_PATH");
    unsetenv("TORCHELASTIC_TIMER_FILE");
    in_a_child(default_is_not_configured);
    CHECK_EQUAL(filetimer_init(&client, NULL, SIGKILL, 0), 0);
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), 0);
    setenv("FILETIMER_PATH", "", 1);
    setenv("TORCHELASTIC_TIMER_FILE", "", 1);
    in_a_child(default_is_not_configured);

    setenv("TORCHELASTIC_TIMER_FILE", fifo, 1); /* an empty FILETIMER_PATH counts as unset */
    in_a_child(default_for_torch);
    setenv("FILETIMER_PATH", fifo, 1);
    setenv("TORCHELASTIC_TIMER_FILE", "/nowhere", 1);
    in_a_child(default_from_environment);
    CHECK_EQUAL(read_all(), 2);
    unsetenv("FILETIMER_PATH");
    unsetenv("TORCHELASTIC_TIMER_FILE");

    in_a_child(default_configured_by_hand);
    CHECK_EQUAL(read_all(), 1);
    CHECK_EQUAL(field(text, "signal"), SIGTERM);
}

static void *use_the_default(void *result)
{
    *(int *)result = filetimer_acquire(NULL, "x", 1);
    return NULL;
}

static int lowest_free_descriptor(void)
{
    const int fd = dup(0);
    CHECK(fd >= 0);
    close(fd);
    return fd;
}

static void threads_open_the_default(void)
{
    pthread_t threads[8];
    int results[8], i;
    const int first = lowest_free_descriptor();
    for (i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, use_the_default, &results[i]) == 0);
    for (i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    for (i = 0; i < 8; i++)
        CHECK_EQUAL(results[i], 1);
    CHECK_EQUAL(filetimer_default()->fd_, first);
    CHECK_EQUAL(lowest_free_descriptor(), first + 1); /* it was opened once */
}

static void test_threads_race_for_the_default(void)
{
    int i;
    setenv("FILETIMER_PATH", fifo, 1);
    for (i = 0; i < 20; i++) {
        in_a_child(threads_open_the_default);
        CHECK_EQUAL(read_all(), 8);
    }
    unsetenv("FILETIMER_PATH");
}

static void test_what_was_done_meanwhile_is_not_done_again(void)
{
    const uint64_t busy = filetimer_phase_of_(FILETIMER_BUSY_, 7);
    uint64_t state = FILETIMER_DONE_; /* it was idle when this thread looked */
    CHECK_EQUAL(filetimer_take_on_(&state, FILETIMER_IDLE_, 7), 0);
    CHECK(state == FILETIMER_DONE_);

    state = FILETIMER_IDLE_;
    CHECK_EQUAL(filetimer_take_on_(&state, state, 7), 1);
    CHECK(state == busy);
    CHECK_EQUAL(filetimer_take_on_(&state, state, 7), 0); /* another thread is at it */
    CHECK_EQUAL(filetimer_take_on_(&state, state, 8), 1); /* who was at it is not here */
}

static void test_zeroed_client_is_not_configured(void)
{
    static filetimer_client client;
    CHECK_EQUAL(filetimer_acquire(&client, "x", 1), 0);
    CHECK_EQUAL(filetimer_release(&client, "x"), 0);
    CHECK_EQUAL(filetimer_configured(&client), 0);
    filetimer_set_wait(&client, 1);
    filetimer_close(&client);
}

/* -------------------------------------------------------------- Scope macro */

static int leave_by_return(filetimer_client *client)
{
    FILETIMER_EXPIRES_AS(timer, client, "return", 1)
        return timer.armed;
    return -1;
}

static void leave_by_goto(filetimer_client *client)
{
    FILETIMER_EXPIRES_AS(timer, client, "goto", 1) {
        if (timer.armed)
            goto out;
    }
    abort();
out:
    return;
}

static int armed_minus_ended(void)
{
    const char *line;
    int sum = 0;
    read_all();
    for (line = text; *line; line = strchr(line, '\n') + 1)
        sum += field(line, "expiration_time") == -1 ? -1 : 1;
    return sum;
}

static void test_scope_macro_ways_out(void)
{
    filetimer_client *client = a_client();
    int i, rounds = 0;
    CHECK_EQUAL(leave_by_return(client), 1);
    leave_by_goto(client);
    for (i = 0; i < 3; i++) {
        FILETIMER_EXPIRES_AS(timer, client, "break", 1) {
            rounds++;
            if (i == 1)
                break;
            if (i == 2)
                continue;
            CHECK(timer.armed);
        }
    }
    CHECK_EQUAL(rounds, 3);
    CHECK_EQUAL(armed_minus_ended(), 0);
    FILETIMER_EXPIRES_AS(outer, client, "outer", 1) {
        FILETIMER_EXPIRES_AS(inner, client, "inner", 1) {
            CHECK(outer.token != inner.token);
            CHECK_EQUAL(armed_minus_ended(), 2);
        }
        CHECK_EQUAL(armed_minus_ended(), -1);
    }
    CHECK_EQUAL(armed_minus_ended(), -1);
    filetimer_close(client);
}

static int deepest;

static void recurse(int depth)
{
    FILETIMER_EXPIRES(60) {
        if (depth > 1)
            recurse(depth - 1);
        else
            deepest = read_all();
    }
}

static void recursion(void)
{
    static long long tokens[100];
    const char *line;
    int i, j;
    recurse(100);
    CHECK_EQUAL(deepest, 100);
    for (line = text, i = 0; *line; line = strchr(line, '\n') + 1) {
        CHECK(strstr(line, __FILE__ "#") != NULL);
        tokens[i++] = field(line, "token");
    }
    CHECK_EQUAL(i, 100);
    for (i = 0; i < 100; i++)
        for (j = 0; j < i; j++)
            CHECK(tokens[i] != tokens[j]);
    CHECK_EQUAL(read_all(), 100);
    for (line = text, i = 100; *line; line = strchr(line, '\n') + 1)
        CHECK_EQUAL(field(line, "token"), tokens[--i]); /* innermost first */
}

static void test_scope_macro_recursion(void)
{
    setenv("FILETIMER_PATH", fifo, 1);
    in_a_child(recursion);
    unsetenv("FILETIMER_PATH");
}

/* ---------------------------------------------------------- Signal handlers */

static volatile sig_atomic_t handled, handler_errors;

static void acquire_in_handler(int number)
{
    filetimer_handle timer;
    const int saved = errno;
    (void)number;
    if (filetimer_try_begin(&timer, shared_client, "handler", 1) != 1 ||
        filetimer_try_end(&timer) != 1 || errno != saved)
        handler_errors = handler_errors + 1;
    handled = handled + 1;
}

static void test_in_a_signal_handler(void)
{
    struct itimerval soon;
    struct sigaction action;
    stack_t alternate, before;
    static char stack[16384 * 4];
    const double start = now();
    long pairs = 0, lines = 0;
    handled = handler_errors = 0;
    shared_client = a_client();

    memset(&alternate, 0, sizeof alternate);
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, &before);
    memset(&action, 0, sizeof action);
    action.sa_handler = acquire_in_handler;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaction(SIGALRM, &action, NULL);
    memset(&soon, 0, sizeof soon);
    while (handled < 200 && now() - start < 20) {
        /* Once a round, at another moment of it each time: a steady timer would
         * leave no time for anything else under valgrind. */
        soon.it_value.tv_usec = 1 + pairs % 50;
        setitimer(ITIMER_REAL, &soon, NULL);
        CHECK_EQUAL(filetimer_acquire(shared_client, "interrupted", 1), 1);
        CHECK_EQUAL(filetimer_release(shared_client, "interrupted"), 1);
        if (++pairs % 20 == 0)
            lines += read_all();
    }
    memset(&soon, 0, sizeof soon);
    setitimer(ITIMER_REAL, &soon, NULL);
    signal(SIGALRM, SIG_DFL);
    alarm(TIME_LIMIT);
    sigaltstack(&before, NULL);
    lines += read_all();
    CHECK(handled >= 200);
    CHECK_EQUAL(handler_errors, 0);
    CHECK_EQUAL(lines, 2 * (pairs + handled));
    filetimer_close(shared_client);
}

/* ------------------------------------------------------------------ Threads */

static void *many_pairs(void *unused)
{
    int i;
    for (i = 0; i < 300; i++) {
        filetimer_handle timer;
        CHECK_EQUAL(filetimer_begin(&timer, shared_client, "thread", 60), 1);
        CHECK_EQUAL(filetimer_end(&timer), 1);
    }
    return unused;
}

static volatile int draining;

static void *keep_draining(void *total)
{
    while (__atomic_load_n(&draining, __ATOMIC_ACQUIRE)) {
        *(int *)total += read_all();
        poll(NULL, 0, 1);
    }
    *(int *)total += read_all();
    return NULL;
}

static void test_threads_share_a_client(void)
{
    pthread_t threads[4], drainer;
    int i, total = 0;
    shared_client = a_client();
    filetimer_set_wait(shared_client, 60);
    draining = 1;
    CHECK(pthread_create(&drainer, NULL, keep_draining, &total) == 0);
    for (i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, many_pairs, NULL) == 0);
    for (i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    __atomic_store_n(&draining, 0, __ATOMIC_RELEASE);
    pthread_join(drainer, NULL);
    CHECK_EQUAL(total, 4 * 300 * 2);
    filetimer_close(shared_client);
}

/* --------------------------------------------------------------------- Main */

#define TEST(name) {#name, test_##name}
static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(encode_acquire),
    TEST(encode_release),
    TEST(encode_leaves_out_what_is_unknown),
    TEST(encode_extremes),
    TEST(encode_refuses),
    TEST(encode_length_limit),
    TEST(encode_scope),
    TEST(prepare_describes_this_process),
    TEST(acquire_and_release),
    TEST(handle),
    TEST(attributes),
    TEST(attributes_have_limits),
    TEST(attributes_that_make_a_record_too_long),
    TEST(bad_arguments),
    TEST(too_long_a_scope),
    TEST(locale_changes_nothing),
    TEST(server_comes_later),
    TEST(refuses_what_is_not_a_fifo),
    TEST(refuses_a_foreign_owner),
    TEST(descriptor),
    TEST(descriptor_stays_off_standard_streams),
    TEST(server_restarts),
    TEST(one_shot),
    TEST(closed_by_somebody),
    TEST(no_sigpipe_by_default_action),
    TEST(own_sigpipe_stays_pending),
    TEST(path_taken),
    TEST(full_pipe_is_waited_for_in_bounds),
    TEST(end_waits_for_what_the_timer_has_left),
    TEST(an_undelivered_acquire_needs_no_release),
    TEST(room_ends_the_wait),
    TEST(fork),
    TEST(clone),
    TEST(child_that_reused_the_number),
    TEST(environment),
    TEST(threads_race_for_the_default),
    TEST(what_was_done_meanwhile_is_not_done_again),
    TEST(zeroed_client_is_not_configured),
    TEST(scope_macro_ways_out),
    TEST(scope_macro_recursion),
    TEST(in_a_signal_handler),
    TEST(threads_share_a_client),
};

int main(int argc, char **argv)
{
    const size_t count = sizeof tests / sizeof *tests;
    const char *base = getenv("TMPDIR");
    size_t i, ran = 0;
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        for (i = 0; i < count; i++)
            puts(tests[i].name);
        return 0;
    }
    alarm(TIME_LIMIT);
    client_flags = getenv("MASK_SIGPIPE") != NULL ? FILETIMER_MASK_SIGPIPE : 0;
    snprintf(directory, sizeof directory, "%s/filetimer-XXXXXX", base != NULL ? base : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(fifo, sizeof fifo, "%s/fifo", directory);
    CHECK(mkfifo(fifo, 0600) == 0);
    server_starts();
    for (i = 0; i < count; i++)
        if (argc == 1 || strcmp(argv[1], tests[i].name) == 0) {
            read_all();
            if (getenv("VERBOSE") != NULL)
                fprintf(stderr, "%s\n", tests[i].name);
            tests[i].run();
            ran++;
        }
    server_dies();
    unlink(fifo);
    rmdir(directory);
    return ran > 0 ? 0 : 2;
}
