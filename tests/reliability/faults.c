// Faults on demand, preloaded into a process: it counts what is done to files below one folder, and
// at a chosen count kills the process, or lets the disk be full or fail.
//
//   cc -shared -fPIC -O1 -o faults.so faults.c -ldl
//   LD_PRELOAD=./faults.so FAULTS="/folder:/state:MODE:AT" program
//
// /state is a file with the struct State, shared by all processes of the folder; FAULTS_TRACE names
// a file that gets a line for each counted call. Without FAULTS nothing happens until faults_arm().
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum Mode {
  kCount,     // nothing but counting
  kKill,      // the process dies before call AT
  kKillHalf,  // it dies with call AT done; of a write, half
  kFull,      // from call AT on there is no space: half a write fits, then ENOSPC
  kFail,      // call AT alone fails with EIO
};

struct State {
  atomic_long count;  // calls so far
  atomic_long hits;   // faults so far
  char call[32];      // the first fault's
  char path[960];
};

static struct {
  char folder[1024];
  size_t length;
  int mode;
  long at;
  int trace;
  struct State* state;
} faults;

// What the caller is to do about a call.
enum Verdict { kDo, kHalf, kNoSpace, kIoError };

#define REAL(type, name, ...)                     \
  static type (*real)(__VA_ARGS__) = NULL;        \
  if (real == NULL) real = dlsym(RTLD_NEXT, name)

int faults_arm(const char* folder, const char* state, int mode, long at, const char* trace) {
  faults.state = NULL;
  snprintf(faults.folder, sizeof(faults.folder), "%s/", folder);
  faults.length = strlen(faults.folder);
  faults.mode = mode;
  faults.at = at;
  faults.trace = -1;
  if (trace != NULL && *trace != '\0') {
    faults.trace = (int)syscall(SYS_openat, AT_FDCWD, trace,
                                O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  }
  const int fd = (int)syscall(SYS_openat, AT_FDCWD, state, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || syscall(SYS_ftruncate, fd, sizeof(struct State)) != 0) return -1;
  void* shared = mmap(NULL, sizeof(struct State), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (shared == MAP_FAILED) return -1;
  faults.state = shared;
  return 0;
}

void faults_disarm(void) { faults.state = NULL; }

__attribute__((constructor)) static void arm_by_environment(void) {
  const char* wanted = getenv("FAULTS");
  if (wanted == NULL) return;
  char copy[4096];
  snprintf(copy, sizeof(copy), "%s", wanted);
  char *rest = copy, *parts[4];
  for (int i = 0; i < 4; ++i) {
    parts[i] = strsep(&rest, ":");
    if (parts[i] == NULL) return;
  }
  faults_arm(parts[0], parts[1], atoi(parts[2]), atol(parts[3]), getenv("FAULTS_TRACE"));
}

// Whether a path, relative to a folder's descriptor, is below the watched folder (or is it itself).
static int watched(int folder, const char* path, char* full, size_t size) {
  if (path == NULL) return 0;
  if (path[0] == '/') {
    snprintf(full, size, "%s", path);
  } else {
    char link[64], base[1024];
    if (folder == AT_FDCWD) {
      if (getcwd(base, sizeof(base)) == NULL) return 0;
    } else {
      snprintf(link, sizeof(link), "/proc/self/fd/%d", folder);
      const ssize_t count = readlink(link, base, sizeof(base) - 1);
      if (count < 0) return 0;
      base[count] = '\0';
    }
    snprintf(full, size, "%s/%s", base, path);
  }
  const size_t length = strlen(full);
  return strncmp(full, faults.folder, faults.length) == 0 ||
         (length == faults.length - 1 && strncmp(full, faults.folder, length) == 0);
}

static int watched_descriptor(int fd, char* full, size_t size) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t count = readlink(link, full, size - 1);
  if (count < 0) return 0;
  full[count] = '\0';
  return strncmp(full, faults.folder, faults.length) == 0 ||
         ((size_t)count == faults.length - 1 && strncmp(full, faults.folder, (size_t)count) == 0);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// Counts a call. `from`: what is renamed, else empty. `grows`: it takes space on the disk. `last` is
// set where the process is to die once the call is done.
static enum Verdict count_call(const char* call, const char* path, const char* from, int grows,
                               int* last) {
  struct State* state = faults.state;
  const long number = atomic_fetch_add(&state->count, 1) + 1;
  *last = 0;
  if (faults.trace >= 0) {
    char line[4600];
    const int length = snprintf(line, sizeof(line), "%ld\t%d\t%s\t%s\t%s\n", number,
                                (int)getpid(), call, path, from);
    syscall(SYS_write, faults.trace, line, length);
  }
  const int now = number == faults.at;
  if (faults.mode == kCount || (faults.mode == kFull ? number < faults.at || !grows : !now)) {
    return kDo;
  }
  if (atomic_fetch_add(&state->hits, 1) == 0) {
    snprintf(state->call, sizeof(state->call), "%s", call);
    snprintf(state->path, sizeof(state->path), "%s", path);
  }
  if (faults.mode == kKill) die();
  if (faults.mode == kKillHalf) {
    *last = 1;
    return kHalf;
  }
  if (faults.mode == kFail) return kIoError;
  return now ? kHalf : kNoSpace;
}

// Returns from the calling function with an error where there is to be one.
#define FAULT_RENAME(call, from_folder, from, folder, path, grows)                  \
  int last = 0;                                                                     \
  {                                                                                 \
    char full[2200], source[2200] = "";                                             \
    if (faults.state && watched(folder, path, full, sizeof(full))) {                \
      if ((from) != NULL) watched(from_folder, from, source, sizeof(source));       \
      const enum Verdict verdict = count_call(call, full, source, grows, &last);    \
      if (verdict == kIoError || (verdict != kDo && !last)) {                       \
        errno = verdict == kIoError ? EIO : ENOSPC;                                 \
        return -1;                                                                  \
      }                                                                             \
    }                                                                               \
  }

#define FAULT_PATH(call, folder, path, grows) \
  FAULT_RENAME(call, AT_FDCWD, (const char*)NULL, folder, path, grows)

#define FINISH(value)              \
  const __typeof__(value) result = (value); \
  if (last) die();                 \
  return result

static int new_file(const char* path, int flags) {
  return (flags & O_CREAT) != 0 && faccessat(AT_FDCWD, path, F_OK, 0) != 0;
}

#define DEFINE_OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                                 \
    REAL(int, #name, const char*, int, ...);                                   \
    mode_t mode = 0;                                                           \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                     \
      va_list list;                                                            \
      va_start(list, flags);                                                   \
      mode = va_arg(list, mode_t);                                             \
      va_end(list);                                                            \
    }                                                                          \
    if (!faults.state || !(flags & (O_CREAT | O_TRUNC))) return real(path, flags, mode); \
    FAULT_PATH("open", AT_FDCWD, path, new_file(path, flags))                  \
    FINISH(real(path, flags, mode));                                           \
  }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                                                    \
  int name(int folder, const char* path, int flags, ...) {                     \
    REAL(int, #name, int, const char*, int, ...);                              \
    mode_t mode = 0;                                                           \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                     \
      va_list list;                                                            \
      va_start(list, flags);                                                   \
      mode = va_arg(list, mode_t);                                             \
      va_end(list);                                                            \
    }                                                                          \
    if (!faults.state || !(flags & (O_CREAT | O_TRUNC))) return real(folder, path, flags, mode); \
    FAULT_PATH("openat", folder, path, (flags & O_CREAT) != 0)                 \
    FINISH(real(folder, path, flags, mode));                                   \
  }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

#define DEFINE_FOPEN(name)                                                     \
  FILE* name(const char* path, const char* how) {                              \
    REAL(FILE*, #name, const char*, const char*);                              \
    char full[2200];                                                           \
    int last = 0;                                                              \
    if (faults.state && how[0] != 'r' && watched(AT_FDCWD, path, full, sizeof(full))) { \
      const enum Verdict verdict =                                             \
          count_call("fopen", full, "", faccessat(AT_FDCWD, path, F_OK, 0) != 0, &last); \
      if (verdict == kIoError || (verdict != kDo && !last)) {                  \
        errno = verdict == kIoError ? EIO : ENOSPC;                            \
        return NULL;                                                           \
      }                                                                        \
    }                                                                          \
    FINISH(real(path, how));                                                   \
  }
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

// `bytes` becomes fewer where only a part is to be written.
static enum Verdict before_write(const char* call, int fd, size_t* bytes, int* last) {
  char full[1024];
  if (!faults.state || fd <= 2 || !watched_descriptor(fd, full, sizeof(full))) return kDo;
  const enum Verdict verdict = count_call(call, full, "", 1, last);
  if (verdict != kHalf) return verdict;
  if (*bytes < 2) return *last ? kDo : kNoSpace;
  *bytes /= 2;
  return kDo;
}

#define FAULT_WRITE(call, fd, bytes)                              \
  int last = 0;                                                   \
  {                                                               \
    const enum Verdict verdict = before_write(call, fd, &bytes, &last); \
    if (verdict != kDo) {                                         \
      errno = verdict == kIoError ? EIO : ENOSPC;                 \
      return -1;                                                  \
    }                                                             \
  }

ssize_t write(int fd, const void* data, size_t bytes) {
  REAL(ssize_t, "write", int, const void*, size_t);
  FAULT_WRITE("write", fd, bytes)
  FINISH(real(fd, data, bytes));
}

#define DEFINE_PWRITE(name, offset_type)                                 \
  ssize_t name(int fd, const void* data, size_t bytes, offset_type offset) { \
    REAL(ssize_t, #name, int, const void*, size_t, offset_type);         \
    FAULT_WRITE("pwrite", fd, bytes)                                     \
    FINISH(real(fd, data, bytes, offset));                               \
  }
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec* pieces, int count) {
  REAL(ssize_t, "writev", int, const struct iovec*, int);
  size_t whole = 0;
  for (int i = 0; i < count; ++i) whole += pieces[i].iov_len;
  size_t bytes = whole;
  FAULT_WRITE("writev", fd, bytes)
  if (bytes == whole) {
    FINISH(real(fd, pieces, count));
  }
  // Half of it: as many whole pieces, and part of the next.
  ssize_t done = 0;
  for (int i = 0; i < count && bytes > 0; ++i) {
    const size_t part = pieces[i].iov_len < bytes ? pieces[i].iov_len : bytes;
    const ssize_t written = syscall(SYS_write, fd, pieces[i].iov_base, part);
    if (written < 0) break;
    done += written;
    bytes -= part;
  }
  FINISH(done);
}

int rename(const char* from, const char* to) {
  REAL(int, "rename", const char*, const char*);
  FAULT_RENAME("rename", AT_FDCWD, from, AT_FDCWD, to, 0)
  FINISH(real(from, to));
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  REAL(int, "renameat", int, const char*, int, const char*);
  FAULT_RENAME("renameat", from_folder, from, to_folder, to, 0)
  FINISH(real(from_folder, from, to_folder, to));
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
  REAL(int, "renameat2", int, const char*, int, const char*, unsigned);
  FAULT_RENAME("renameat2", from_folder, from, to_folder, to, 0)
  FINISH(real(from_folder, from, to_folder, to, flags));
}

int link(const char* from, const char* to) {
  REAL(int, "link", const char*, const char*);
  FAULT_PATH("link", AT_FDCWD, to, 1)
  FINISH(real(from, to));
}

int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) {
  REAL(int, "linkat", int, const char*, int, const char*, int);
  FAULT_PATH("linkat", to_folder, to, 1)
  FINISH(real(from_folder, from, to_folder, to, flags));
}

int unlink(const char* path) {
  REAL(int, "unlink", const char*);
  FAULT_PATH("unlink", AT_FDCWD, path, 0)
  FINISH(real(path));
}

int unlinkat(int folder, const char* path, int flags) {
  REAL(int, "unlinkat", int, const char*, int);
  FAULT_PATH("unlinkat", folder, path, 0)
  FINISH(real(folder, path, flags));
}

int rmdir(const char* path) {
  REAL(int, "rmdir", const char*);
  FAULT_PATH("rmdir", AT_FDCWD, path, 0)
  FINISH(real(path));
}

int mkdir(const char* path, mode_t mode) {
  REAL(int, "mkdir", const char*, mode_t);
  FAULT_PATH("mkdir", AT_FDCWD, path, 1)
  FINISH(real(path, mode));
}

int mkdirat(int folder, const char* path, mode_t mode) {
  REAL(int, "mkdirat", int, const char*, mode_t);
  FAULT_PATH("mkdirat", folder, path, 1)
  FINISH(real(folder, path, mode));
}

#define FAULT_DESCRIPTOR(call, fd, grows)                                     \
  int last = 0;                                                               \
  {                                                                           \
    char full[1024];                                                          \
    if (faults.state && watched_descriptor(fd, full, sizeof(full))) {         \
      const enum Verdict verdict = count_call(call, full, "", grows, &last);  \
      if (verdict == kIoError || (verdict != kDo && !last)) {                 \
        errno = verdict == kIoError ? EIO : ENOSPC;                           \
        return -1;                                                            \
      }                                                                       \
    }                                                                         \
  }

int fsync(int fd) {
  REAL(int, "fsync", int);
  FAULT_DESCRIPTOR("fsync", fd, 0)
  FINISH(real(fd));
}

int fdatasync(int fd) {
  REAL(int, "fdatasync", int);
  FAULT_DESCRIPTOR("fdatasync", fd, 0)
  FINISH(real(fd));
}

#define DEFINE_TRUNCATE(name, offset_type)       \
  int name(int fd, offset_type size) {           \
    REAL(int, #name, int, offset_type);          \
    FAULT_DESCRIPTOR("ftruncate", fd, size > 0)  \
    FINISH(real(fd, size));                      \
  }
DEFINE_TRUNCATE(ftruncate, off_t)
DEFINE_TRUNCATE(ftruncate64, off64_t)

#define DEFINE_ALLOCATE(name, offset_type)                             \
  int name(int fd, int mode, offset_type offset, offset_type bytes) {  \
    REAL(int, #name, int, int, offset_type, offset_type);              \
    FAULT_DESCRIPTOR("fallocate", fd, 1)                               \
    FINISH(real(fd, mode, offset, bytes));                             \
  }
DEFINE_ALLOCATE(fallocate, off_t)
DEFINE_ALLOCATE(fallocate64, off64_t)
