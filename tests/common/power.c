/* What of a folder would outlive a power cut: a journal of what was synced and of what changed the names in it.
 *
 * Loaded by LD_PRELOAD under a program, for the files below the folder POWER_ROOT. Every call goes on to the C library; beside
 * it a line is appended to the file POWER_JOURNAL:
 *
 *   create N path               a name came to be          the N-th change of a name; its line is written before the change is made
 *   mkdir  N path
 *   unlink N kept path          a name went; the file is linked as POWER_KEPT/kept, for it may come back
 *   rename N kept from>to       a name went over to another; what that named before is kept, or it is `-`
 *   undone N                    the change did not take place: the call failed
 *   synced inode length         an fsync or fdatasync ended: so many bytes of a file are on disk, those it had when the call began
 *   names  inode N              an fsync of a folder ended: the changes of its names up to the N-th are on disk
 *   alarm  text                 something that this journal cannot follow; a test fails by it
 *
 * Counted as synced is what a call that *ended well* promises, and no more: neither sync_file_range nor close promises anything. The
 * journal itself lives in the page cache: the test kills the program, not the machine.
 *
 * Files are told apart by inode. A file that went is kept under another name, so no inode is given twice.
 * What is written with write, pwrite and their kin needs no line: what is not synced is not there. RocksDB only ever appends;
 * bytes written over synced ones would be an alarm, as would a shared writable mapping.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* The C library's own function of that name. */
#define NEXT(name) ((__typeof__(&name))next(#name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], kept[PATH_MAX];
static size_t root_len;
static int journal = -1;
static unsigned long changes;

static void *next(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWER_ROOT"), *file = getenv("POWER_JOURNAL"), *side = getenv("POWER_KEPT");
    if (!folder || !file || !side) return;
    /* A program that this one starts is not watched: its changes would be counted from one again. */
    unsetenv("LD_PRELOAD");
    snprintf(root, sizeof root, "%s", folder);
    snprintf(kept, sizeof kept, "%s", side);
    root_len = strlen(root);
    journal = NEXT(open)(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (journal < 0) abort();
}

static void tell(const char *format, ...) {
    char line[3 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    /* A test that does not know what was synced must not go on. */
    if (length < 0 || (size_t)length >= sizeof line || NEXT(write)(journal, line, (size_t)length) != length) abort();
}

static int below_root(const char *path) {
    return journal >= 0 && !strncmp(path, root, root_len) && (path[root_len] == '/' || !path[root_len]);
}

/* The absolute path of what a call names; NULL when it is not below the root. */
static const char *watched(int folder, const char *path, char *into) {
    int error = errno;
    if (journal < 0 || !path) return NULL;
    if (path[0] == '/') {
        snprintf(into, PATH_MAX, "%s", path);
    } else {
        char link[64];
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, into, PATH_MAX - 1);
        if (length < 0) length = 0;
        snprintf(into + length, (size_t)(PATH_MAX - length), "/%s", path);
    }
    errno = error;
    return below_root(into) ? into : NULL;
}

/* The path of an open file below the root; NULL for others. */
static const char *watched_file(int fd, char *into) {
    int error = errno;
    char link[64];
    if (journal < 0) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, into, PATH_MAX - 1);
    errno = error;
    if (length < 0) return NULL;
    into[length] = 0;
    return below_root(into) ? into : NULL;
}

static int exists(const char *path) {
    struct stat stat;
    int error = errno, found = !lstat(path, &stat);
    errno = error;
    return found;
}

/* Keeps a file that is about to lose its name. */
static unsigned long keep(const char *path) {
    static unsigned long count;
    char into[PATH_MAX + 32];
    snprintf(into, sizeof into, "%s/%lu", kept, ++count);
    if (NEXT(link)(path, into)) tell("alarm %s cannot be kept: %s\n", path, strerror(errno));
    return count;
}

/* A change of a name: `CALL` is made with the line before it, and taken back in words where it fails. */
#define CHANGE(CALL, ...)                                    \
    ({                                                       \
        tell(__VA_ARGS__);                                   \
        __typeof__(CALL) result = CALL;                      \
        int error = errno;                                   \
        if (result < 0) tell("undone %lu\n", changes);       \
        errno = error;                                       \
        result;                                              \
    })

/* ---- names that come to be ---- */

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    int file;
    if (!(flags & O_CREAT) || !watched(folder, path, full)) return NEXT(openat)(folder, path, flags, mode);
    pthread_mutex_lock(&lock);
    if (exists(full)) {
        struct stat stat;
        if (flags & O_TRUNC && !lstat(full, &stat) && stat.st_size > 0) tell("alarm %s is truncated by open\n", full);
        file = NEXT(openat)(folder, path, flags, mode);
    } else {
        changes++;
        file = CHANGE(NEXT(openat)(folder, path, flags, mode), "create %lu %s\n", changes, full);
    }
    pthread_mutex_unlock(&lock);
    return file;
}

#define MODE(mode, flags)                                    \
    mode_t mode = 0;                                         \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                   \
        va_list arguments;                                   \
        va_start(arguments, flags);                          \
        mode = va_arg(arguments, mode_t);                    \
        va_end(arguments);                                   \
    }

EXPORT int open(const char *path, int flags, ...) {
    MODE(mode, flags)
    return opened(AT_FDCWD, path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...) {
    MODE(mode, flags)
    return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

EXPORT int openat(int folder, const char *path, int flags, ...);
EXPORT int openat64(int folder, const char *path, int flags, ...) {
    MODE(mode, flags)
    return opened(folder, path, flags | O_LARGEFILE, mode);
}

EXPORT int openat(int folder, const char *path, int flags, ...) {
    MODE(mode, flags)
    return opened(folder, path, flags, mode);
}

EXPORT int creat(const char *path, mode_t mode) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

static int mkdired(int folder, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!watched(folder, path, full) || exists(full)) return NEXT(mkdirat)(folder, path, mode);
    pthread_mutex_lock(&lock);
    changes++;
    int result = CHANGE(NEXT(mkdirat)(folder, path, mode), "mkdir %lu %s\n", changes, full);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int mkdir(const char *path, mode_t mode) {
    return mkdired(AT_FDCWD, path, mode);
}

EXPORT int mkdirat(int folder, const char *path, mode_t mode) {
    return mkdired(folder, path, mode);
}

/* ---- names that go ---- */

static int unlinked(int folder, const char *path, int flags) {
    char full[PATH_MAX];
    if (!watched(folder, path, full) || !exists(full)) return NEXT(unlinkat)(folder, path, flags);
    pthread_mutex_lock(&lock);
    int result;
    if (flags & AT_REMOVEDIR) {
        tell("alarm %s is removed, a folder\n", full);
        result = NEXT(unlinkat)(folder, path, flags);
    } else {
        changes++;
        result = CHANGE(NEXT(unlinkat)(folder, path, flags), "unlink %lu %lu %s\n", changes, keep(full), full);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int unlink(const char *path) {
    return unlinked(AT_FDCWD, path, 0);
}

EXPORT int unlinkat(int folder, const char *path, int flags) {
    return unlinked(folder, path, flags);
}

EXPORT int remove(const char *path) {
    struct stat stat;
    int folder = !lstat(path, &stat) && S_ISDIR(stat.st_mode);
    return unlinked(AT_FDCWD, path, folder ? AT_REMOVEDIR : 0);
}

EXPORT int rmdir(const char *path) {
    return unlinked(AT_FDCWD, path, AT_REMOVEDIR);
}

static int renamed(int from_folder, const char *from, int to_folder, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    const char *is_old = watched(from_folder, from, old), *is_new = watched(to_folder, to, new);
    if (!is_old && !is_new) return NEXT(renameat)(from_folder, from, to_folder, to);
    pthread_mutex_lock(&lock);
    if (!is_old || !is_new) tell("alarm %s is renamed to %s\n", old, new);
    changes++;
    char over[32] = "-";
    if (exists(new)) snprintf(over, sizeof over, "%lu", keep(new));
    int result = CHANGE(NEXT(renameat)(from_folder, from, to_folder, to), "rename %lu %s %s>%s\n", changes, over, old, new);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int rename(const char *from, const char *to) {
    return renamed(AT_FDCWD, from, AT_FDCWD, to);
}

EXPORT int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return renamed(from_folder, from, to_folder, to);
}

EXPORT int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char path[PATH_MAX];
    if (flags && watched(from_folder, from, path)) tell("alarm %s is renamed with flags\n", path);
    if (flags) return NEXT(renameat2)(from_folder, from, to_folder, to, flags);
    return renamed(from_folder, from, to_folder, to);
}

EXPORT int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char path[PATH_MAX];
    if (watched(to_folder, to, path)) tell("alarm %s is made as a link\n", path);
    return NEXT(linkat)(from_folder, from, to_folder, to, flags);
}

EXPORT int link(const char *from, const char *to) {
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* ---- what is on disk ---- */

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    struct stat before;
    if (!watched_file(fd, path) || fstat(fd, &before)) return sync(fd);
    pthread_mutex_lock(&lock);
    unsigned long until = changes;
    pthread_mutex_unlock(&lock);
    int result = sync(fd), error = errno;
    if (!result) {
        if (S_ISDIR(before.st_mode)) tell("names %lu %lu\n", (unsigned long)before.st_ino, until);
        else tell("synced %lu %lld\n", (unsigned long)before.st_ino, (long long)before.st_size);
    }
    errno = error;
    return result;
}

EXPORT int fsync(int fd) {
    return synced(fd, NEXT(fsync));
}

EXPORT int fdatasync(int fd) {
    return synced(fd, NEXT(fdatasync));
}

/* ---- what the journal cannot follow ---- */

/* RocksDB cuts off what it had set aside behind the end of a file; a file that gets shorter than it is written is an alarm. */
static void cut(int fd, off_t length) {
    char path[PATH_MAX];
    struct stat stat;
    if (watched_file(fd, path) && !fstat(fd, &stat) && length < stat.st_size)
        tell("alarm %s is cut from %lld to %lld bytes\n", path, (long long)stat.st_size, (long long)length);
}

EXPORT int ftruncate(int fd, off_t length) {
    cut(fd, length);
    return NEXT(ftruncate)(fd, length);
}

EXPORT int ftruncate64(int fd, off64_t length) {
    cut(fd, length);
    return NEXT(ftruncate64)(fd, length);
}

/* RocksDB appends with write; a write at a place is an alarm where there are bytes already. */
static void placed(int fd, off_t at) {
    char path[PATH_MAX];
    struct stat stat;
    if (watched_file(fd, path) && !fstat(fd, &stat) && at < stat.st_size) tell("alarm %s is written over at %lld\n", path, (long long)at);
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    placed(fd, at);
    return NEXT(pwrite)(fd, data, length, at);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    placed(fd, at);
    return NEXT(pwrite64)(fd, data, length, at);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    placed(fd, at);
    return NEXT(pwritev)(fd, parts, count, at);
}

static void mapped(int protection, int flags, int fd) {
    char path[PATH_MAX];
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && fd >= 0 && watched_file(fd, path))
        tell("alarm %s is mapped for writing\n", path);
}

EXPORT void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    mapped(protection, flags, fd);
    return NEXT(mmap)(at, length, protection, flags, fd, offset);
}

EXPORT void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    mapped(protection, flags, fd);
    return NEXT(mmap64)(at, length, protection, flags, fd, offset);
}
