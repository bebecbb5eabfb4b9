// Counts the calls by which a process changes, or reads, files under a folder; at one of them it kills the process, or
// lets the call fail. Loaded by LD_PRELOAD, armed through fp_arm after a fork; tests/support/failpoints.py drives it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FAIL };
enum { CALLS = 1 << 16 };

// shared with the process that forks, which reads it after this one was killed
static struct { int count; char kinds[CALLS]; } *seen;
static char root[4096];
static size_t root_length;
static int mode, at, number, share, lasting, reads;

__attribute__((constructor)) static void start(void) {
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED) abort();
}

// what:    COUNT, or KILL or FAIL at the call that `which` counts, from 0
// code:    the errno of the failing call; `last`: every later call fails too, as on a full disk
// percent: how much of its bytes a write writes before that; 100: the call is done before the process is killed
// reading: the calls that read are counted instead of those that change something
void fp_arm(const char *folder, int what, int which, int code, int percent, int last, int reading) {
    root_length = strlen(strncpy(root, folder, sizeof root - 1));
    at = which, number = code, share = percent, lasting = last, reads = reading, seen->count = 0;
    mode = what;
}
void fp_disarm(void) { mode = OFF; }
int fp_count(void) { return seen->count; }
char fp_kind(int which) { return seen->kinds[which]; }

static int is_under(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int is_open_under(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_under(path);
}

static int is_named_under(int folder, const char *name) {
    if (!name) return 0;
    if (name[0] == '/') return is_under(name);
    if (folder != AT_FDCWD) return is_open_under(folder);
    char path[8192];
    if (!getcwd(path, 4096)) return 0;
    strcat(path, "/");
    strncat(path, name, 4000);
    return is_under(path);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

// Whether this call is the one at which something happens. A process that is to die before the call does so here.
static int is_hit(char kind, int is_here, int is_read) {
    if (mode == OFF || is_read != reads || !is_here) return 0;
    int which = __sync_fetch_and_add(&seen->count, 1);
    if (which < CALLS) seen->kinds[which] = kind;
    int hit = mode != COUNT && (which == at || (lasting && which > at));
    if (hit && mode == KILL && !share) die();
    return hit;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
// the call itself; a process that is to die after it does so here
#define DONE(type, hit, call) do { if ((hit) && mode == FAIL) { errno = number; return -1; } \
    type result = (call); if (hit) die(); return result; } while (0)

static int is_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t rights = va_arg(more, mode_t); va_end(more); \
    REAL(int, name, const char *, int, ...); \
    int hit = is_hit('o', mode && is_named_under(AT_FDCWD, path), !is_writing(flags)); \
    DONE(int, hit, real(path, flags, rights)); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t rights = va_arg(more, mode_t); va_end(more); \
    REAL(int, name, int, const char *, int, ...); \
    int hit = is_hit('o', mode && is_named_under(folder, path), !is_writing(flags)); \
    DONE(int, hit, real(folder, path, flags, rights)); }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    int hit = is_hit('w', mode && is_open_under(file), 0);
    if (hit && share && share < 100) {
        size_t part = count * share / 100;
        for (size_t done = 0; done < part;) {
            ssize_t more = real(file, (const char *)bytes + done, part - done);
            if (more <= 0) break;
            done += more;
        }
        if (mode == KILL) die();
        if (part) {  // a short write; the next one fails
            at++;
            return part;
        }
    }
    DONE(ssize_t, hit, real(file, bytes, count));
}
#define PWRITE(name, offset_type) ssize_t name(int file, const void *bytes, size_t count, offset_type offset) { \
    REAL(ssize_t, name, int, const void *, size_t, offset_type); \
    int hit = is_hit('w', mode && is_open_under(file), 0); DONE(ssize_t, hit, real(file, bytes, count, offset)); }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int hit = is_hit('w', mode && is_open_under(file), 0); DONE(ssize_t, hit, real(file, parts, count));
}
ssize_t read(int file, void *bytes, size_t count) {
    REAL(ssize_t, read, int, void *, size_t);
    int hit = is_hit('r', mode && is_open_under(file), 1); DONE(ssize_t, hit, real(file, bytes, count));
}
#define PREAD(name, offset_type) ssize_t name(int file, void *bytes, size_t count, offset_type offset) { \
    REAL(ssize_t, name, int, void *, size_t, offset_type); \
    int hit = is_hit('r', mode && is_open_under(file), 1); DONE(ssize_t, hit, real(file, bytes, count, offset)); }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

#define BY_FILE(name, kind) int name(int file) { \
    REAL(int, name, int); int hit = is_hit(kind, mode && is_open_under(file), 0); DONE(int, hit, real(file)); }
BY_FILE(fsync, 's')
BY_FILE(fdatasync, 's')
int fchmod(int file, mode_t rights) {
    REAL(int, fchmod, int, mode_t);
    int hit = is_hit('c', mode && is_open_under(file), 0); DONE(int, hit, real(file, rights));
}
#define TRUNCATE(name, offset_type) int name(int file, offset_type length) { REAL(int, name, int, offset_type); \
    int hit = is_hit('t', mode && is_open_under(file), 0); DONE(int, hit, real(file, length)); }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    int hit = is_hit('n', mode && is_named_under(AT_FDCWD, to), 0); DONE(int, hit, real(from, to));
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    int hit = is_hit('n', mode && is_named_under(to_folder, to), 0);
    DONE(int, hit, real(from_folder, from, to_folder, to));
}
#define WITH_RIGHTS(name, kind) int name(const char *path, mode_t rights) { REAL(int, name, const char *, mode_t); \
    int hit = is_hit(kind, mode && is_named_under(AT_FDCWD, path), 0); DONE(int, hit, real(path, rights)); }
WITH_RIGHTS(mkdir, 'm')
WITH_RIGHTS(chmod, 'c')
#define BY_PATH(name, kind) int name(const char *path) { REAL(int, name, const char *); \
    int hit = is_hit(kind, mode && is_named_under(AT_FDCWD, path), 0); DONE(int, hit, real(path)); }
BY_PATH(unlink, 'u')
BY_PATH(rmdir, 'u')
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    int hit = is_hit('u', mode && is_named_under(folder, path), 0); DONE(int, hit, real(folder, path, flags));
}
