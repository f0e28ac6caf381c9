"""Builds ``filetimer._native`` from ``c/include/filetimer.h`` and ``native.c``, with cffi.

setup.py names :data:`ffi` to setuptools (``cffi_modules``), which compiles it against the limited
API: one module serves every CPython from 3.10 on, but for the free-threaded ones.
"""

from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]

DECLARATIONS = """
typedef struct { int fd_; uint64_t inode_; unsigned flags_; ...; } filetimer_client;

typedef struct {
    int64_t token;
    int64_t deadline_us;
    int armed;
    ...;
} filetimer_handle;

typedef struct { ...; } filetimer_attributes;

typedef struct {
    filetimer_client *client;
    int64_t deadline_us;
    filetimer_attributes attributes;
    size_t length;
    char text[];
} native_scope;

#define FILETIMER_MASK_SIGPIPE ...
#define FILETIMER_ONE_SHOT ...
static char *const FILETIMER_VERSION;

int filetimer_init(filetimer_client *, const char *path, int signum, unsigned flags);
void keep_open_if_locked(filetimer_client *);
void close_pipe(filetimer_client *);
void set_attributes(native_scope *, const char *text, size_t length);

int quick_acquire(native_scope *, double expiration_time);
int quick_release(native_scope *);
int quick_begin(filetimer_handle *, native_scope *, double after);
int quick_extend(filetimer_handle *, double after);
int quick_end(filetimer_handle *);

int acquire(native_scope *, double expiration_time, double wait);
int release(native_scope *, double wait);
int begin(filetimer_handle *, native_scope *, double after, double wait);
int extend(filetimer_handle *, double after, double wait);
int end(filetimer_handle *, double wait);
"""

ffi = FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "filetimer._native",
    (ROOT / "c/cffi/native.c").read_text("utf-8"),
    include_dirs=["c/include"],
    depends=["c/include/filetimer.h", "c/cffi/native.c"],
    optional=True,  # without a C compiler the package is pure Python
)
