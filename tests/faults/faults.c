/* Counts the file calls below one folder and, at a chosen one, kills the process, fails the call or moves the folder.
   For LD_PRELOAD.

   Every call counted is a line of the log, "NUMBER KIND RESULT INODE PATH[\tNEW PATH]": RESULT is the call's, or
   "killed". The log is written call by call, so it tells after a SIGKILL what had happened until then.

   What glibc does within itself does not come past here, so fopen and fread are wrapped beside open and read. Reads
   through a memory map, fclose and fcntl's locks are not counted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Both in the order of tests/faults/__init__.py. */
enum kind { OPEN, CREATE, READ, WRITE, SYNC, RENAME, LINK, UNLINK, MKDIR, CHMOD, LOCK, CLOSE };
static const char *const NAMES[] = {"open", "create", "read",  "write", "sync", "rename",
                                    "link", "unlink", "mkdir", "chmod", "lock", "close"};
enum action { COUNT, KILL_BEFORE, KILL_AFTER, KILL_HALFWAY, FAIL_ONCE, FAIL_ON, WRITE_SHORT, MOVE };

struct call {
    unsigned number; /* 0: not ours */
    enum kind kind;
    enum action action;
    unsigned long inode;
    char path[PATH_MAX], other[PATH_MAX];
};

static char folder[PATH_MAX];
static int armed, log_fd = -1;
static unsigned counter, wanted_kinds, wanted_number, wanted_error;
static enum action wanted_action;
static __thread int unseen;

void faults_disarm(void) { __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST); }

/* What this thread does while `on` is neither counted nor failed. */
void faults_unseen(int on) { unseen = on; }

/* From now on calls below `below` of the kinds in the bit mask are numbered from 1; at `number` comes the action.
   FAIL_ON fails that call and all later ones. 0, or -1 where the log cannot be opened. */
int faults_arm(const char *below, const char *log, unsigned kinds, unsigned number, int action, int error) {
    faults_disarm();
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0 || strlen(below) >= sizeof folder) return -1;
    strcpy(folder, below);
    counter = 0, wanted_kinds = kinds, wanted_number = number, wanted_action = action, wanted_error = error;
    __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
    return 0;
}

/* The absolute path of `path` seen from the folder `fd`, or of `fd` itself where `path` is NULL. */
static void resolve(int fd, const char *path, char *into) {
    char link[32];
    ssize_t length = 0;
    int end = 0;
    if (path && sscanf(path, "/proc/self/fd/%d%n", &fd, &end) == 1) { /* a folder by its descriptor */
        path += end;
        if (*path++ != '/') path = NULL;
    }
    if (!path || *path != '/') {
        if (fd == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = syscall(SYS_readlinkat, AT_FDCWD, link, into, PATH_MAX - 1);
        if (length < 0) length = 0;
    }
    snprintf(into + length, PATH_MAX - length, "%s%s", length && path ? "/" : "", path ? path : "");
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == 0 || path[length] == '/');
}

static void record(const struct call *call, const char *result) {
    char line[2 * PATH_MAX + 80];
    int length = snprintf(line, sizeof line, "%u %s %s %lu %s%s%s\n", call->number, NAMES[call->kind], result,
                          call->inode, call->path, *call->other ? "\t" : "", call->other);
    syscall(SYS_write, log_fd, line, length);
}

/* Moves the folder to FOLDER-moved; FOLDER-other, if there is one, takes its place. */
static void move(void) {
    char beside[PATH_MAX + 8];
    snprintf(beside, sizeof beside, "%s-moved", folder);
    syscall(SYS_renameat2, AT_FDCWD, folder, AT_FDCWD, beside, 0);
    snprintf(beside, sizeof beside, "%s-other", folder);
    syscall(SYS_renameat2, AT_FDCWD, beside, AT_FDCWD, folder, 0);
}

static void die(const struct call *call) {
    record(call, "killed");
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* Before a call: numbers it. True where it must fail instead of happening; errno is set then. */
static int begin(struct call *call, enum kind kind, int fd, const char *path, int other_fd, const char *other) {
    call->number = 0;
    if (unseen || !__atomic_load_n(&armed, __ATOMIC_SEQ_CST) || !(wanted_kinds & 1u << kind)) return 0;
    int before = errno;
    resolve(fd, path, call->path);
    *call->other = 0;
    if (other) resolve(other_fd, other, call->other);
    errno = before;
    if (!is_below(call->path) && !is_below(call->other)) return 0;
    struct stat status;
    call->inode = !(path ? lstat(call->path, &status) : fstat(fd, &status)) ? status.st_ino : 0;
    errno = before;
    call->kind = kind;
    call->number = __atomic_add_fetch(&counter, 1, __ATOMIC_SEQ_CST);
    int hit = call->number == wanted_number || (wanted_action == FAIL_ON && call->number > wanted_number);
    call->action = hit ? wanted_action : COUNT;
    if (call->action == KILL_BEFORE || (call->action == KILL_HALFWAY && kind != WRITE)) die(call);
    if (call->action == MOVE) move();
    if (call->action != FAIL_ONCE && call->action != FAIL_ON) return 0;
    record(call, "failed");
    errno = wanted_error;
    return 1;
}

static void end(const struct call *call, long result) {
    if (!call->number) return;
    int after = errno;
    char text[24];
    snprintf(text, sizeof text, "%ld", result);
    if (call->action == KILL_AFTER || call->action == KILL_HALFWAY) die(call);
    record(call, text);
    errno = after;
}

/* How much of a write of `size` bytes is to happen. */
static size_t allowed(const struct call *call, size_t size) {
    int cut = call->number && (call->action == KILL_HALFWAY || call->action == WRITE_SHORT);
    return cut && size > 1 ? size / 2 : size;
}

#define NEXT(name)                                                  \
    ({                                                              \
        static __typeof__(&name) next;                              \
        if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        next;                                                       \
    })
#define PASS(type, failed, kind, fd, path, other_fd, other, expression)                \
    {                                                                                  \
        struct call call;                                                              \
        if (begin(&call, kind, fd, path, other_fd, other)) return failed;              \
        type result = expression;                                                      \
        end(&call, (long)result);                                                      \
        return result;                                                                 \
    }
#define ON_FD(type, kind, fd, expression) PASS(type, -1, kind, fd, NULL, 0, NULL, expression)
#define ON_PATH(kind, fd, path, expression) PASS(int, -1, kind, fd, path, 0, NULL, expression)
#define ON_PATHS(kind, fd, path, other_fd, other, expression) PASS(int, -1, kind, fd, path, other_fd, other, expression)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define WITH_MODE(flags) \
    va_list rest;        \
    va_start(rest, flags); \
    mode_t mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);
#define OPEN_CALL(name)                                                                                             \
    int name(const char *path, int flags, ...) {                                                                    \
        WITH_MODE(flags)                                                                                            \
        ON_PATH(writes(flags) ? CREATE : OPEN, AT_FDCWD, path, NEXT(name)(path, flags, mode))                       \
    }
#define OPENAT_CALL(name)                                                                                           \
    int name(int fd, const char *path, int flags, ...) {                                                            \
        WITH_MODE(flags)                                                                                            \
        ON_PATH(writes(flags) ? CREATE : OPEN, fd, path, NEXT(name)(fd, path, flags, mode))                         \
    }
OPEN_CALL(open) OPEN_CALL(open64) OPENAT_CALL(openat) OPENAT_CALL(openat64)

#define FOPEN_CALL(name)                                                                                            \
    FILE *name(const char *path, const char *mode)                                                                  \
        PASS(FILE *, NULL, strchr(mode, 'r') && !strchr(mode, '+') ? OPEN : CREATE, AT_FDCWD, path, 0, NULL,        \
             NEXT(name)(path, mode))
FOPEN_CALL(fopen) FOPEN_CALL(fopen64)

size_t fread(void *to, size_t size, size_t count, FILE *file)
    PASS(size_t, 0, READ, fileno(file), NULL, 0, NULL, NEXT(fread)(to, size, count, file))
ssize_t read(int fd, void *to, size_t size) ON_FD(ssize_t, READ, fd, NEXT(read)(fd, to, size))
ssize_t pread(int fd, void *to, size_t size, off_t at) ON_FD(ssize_t, READ, fd, NEXT(pread)(fd, to, size, at))
ssize_t pread64(int fd, void *to, size_t size, off64_t at) ON_FD(ssize_t, READ, fd, NEXT(pread64)(fd, to, size, at))

ssize_t write(int fd, const void *from, size_t size)
    ON_FD(ssize_t, WRITE, fd, NEXT(write)(fd, from, allowed(&call, size)))
ssize_t pwrite(int fd, const void *from, size_t size, off_t at)
    ON_FD(ssize_t, WRITE, fd, NEXT(pwrite)(fd, from, allowed(&call, size), at))
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
    ON_FD(ssize_t, WRITE, fd, NEXT(pwrite64)(fd, from, allowed(&call, size), at))
ssize_t writev(int fd, const struct iovec *parts, int count)
    ON_FD(ssize_t, WRITE, fd, NEXT(writev)(fd, parts, allowed(&call, count)))
ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
    ON_FD(ssize_t, WRITE, to, NEXT(sendfile64)(to, from, at, allowed(&call, size)))
ssize_t sendfile(int to, int from, off_t *at, size_t size)
    ON_FD(ssize_t, WRITE, to, NEXT(sendfile)(to, from, at, allowed(&call, size)))
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags)
    ON_FD(ssize_t, WRITE, to, NEXT(copy_file_range)(from, at, to, to_at, allowed(&call, size), flags))
int ftruncate(int fd, off_t size) ON_FD(int, WRITE, fd, NEXT(ftruncate)(fd, size))
int ftruncate64(int fd, off64_t size) ON_FD(int, WRITE, fd, NEXT(ftruncate64)(fd, size))
int truncate64(const char *path, off64_t size) ON_PATH(WRITE, AT_FDCWD, path, NEXT(truncate64)(path, size))
int posix_fallocate64(int fd, off64_t at, off64_t size)
    PASS(int, (int)wanted_error, WRITE, fd, NULL, 0, NULL, NEXT(posix_fallocate64)(fd, at, size))

int fsync(int fd) ON_FD(int, SYNC, fd, NEXT(fsync)(fd))
int fdatasync(int fd) ON_FD(int, SYNC, fd, NEXT(fdatasync)(fd))
int close(int fd) ON_FD(int, CLOSE, fd, NEXT(close)(fd))
int flock(int fd, int operation) ON_FD(int, LOCK, fd, NEXT(flock)(fd, operation))
int fchmod(int fd, mode_t mode) ON_FD(int, CHMOD, fd, NEXT(fchmod)(fd, mode))
int chmod(const char *path, mode_t mode) ON_PATH(CHMOD, AT_FDCWD, path, NEXT(chmod)(path, mode))

int rename(const char *old, const char *new) ON_PATHS(RENAME, AT_FDCWD, old, AT_FDCWD, new, NEXT(rename)(old, new))
int renameat(int fd, const char *old, int new_fd, const char *new)
    ON_PATHS(RENAME, fd, old, new_fd, new, NEXT(renameat)(fd, old, new_fd, new))
int renameat2(int fd, const char *old, int new_fd, const char *new, unsigned flags)
    ON_PATHS(RENAME, fd, old, new_fd, new, NEXT(renameat2)(fd, old, new_fd, new, flags))
int link(const char *old, const char *new) ON_PATHS(LINK, AT_FDCWD, old, AT_FDCWD, new, NEXT(link)(old, new))
int linkat(int fd, const char *old, int new_fd, const char *new, int flags)
    ON_PATHS(LINK, fd, old, new_fd, new, NEXT(linkat)(fd, old, new_fd, new, flags))
int unlink(const char *path) ON_PATH(UNLINK, AT_FDCWD, path, NEXT(unlink)(path))
int unlinkat(int fd, const char *path, int flags) ON_PATH(UNLINK, fd, path, NEXT(unlinkat)(fd, path, flags))
int rmdir(const char *path) ON_PATH(UNLINK, AT_FDCWD, path, NEXT(rmdir)(path))
int remove(const char *path) ON_PATH(UNLINK, AT_FDCWD, path, NEXT(remove)(path))
int mkdir(const char *path, mode_t mode) ON_PATH(MKDIR, AT_FDCWD, path, NEXT(mkdir)(path, mode))
int mkdirat(int fd, const char *path, mode_t mode) ON_PATH(MKDIR, fd, path, NEXT(mkdirat)(fd, path, mode))
