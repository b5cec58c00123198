/* AVX-512 in a guest: several processes whose registers hold patterns of their own across
 * system calls, signals and preemption, and arithmetic compared with plain code's. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REGISTERS = 32 * 64, ALL = REGISTERS + 64 };

static volatile sig_atomic_t handled;

/* A handler that uses the registers itself. */
static void on_signal(int number)
{
    __asm__ volatile("vpternlogd $0xff, %%zmm17, %%zmm17, %%zmm17\n\t"
                     "vpxorq %%zmm31, %%zmm31, %%zmm31\n\t"
                     "kxorq %%k3, %%k3, %%k3" ::: "xmm17", "xmm31", "k3");
    handled += number == SIGUSR1;
}

/* Loads ZMM0-31 and K0-7 from `from`, makes system calls (sched_yield, and kill of the own
 * process with SIGUSR1), spins, and stores the registers to `to`. */
static void hold(const uint8_t *from, uint8_t *to, long pid, long rounds)
{
#define EACH(n) "vmovdqu64 " #n "*64(%0), %%zmm" #n "\n\t"
#define BACK(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%1)\n\t"
#define MASK(n) "kmovq 2048+" #n "*8(%0), %%k" #n "\n\t"
#define KEEP(n) "kmovq %%k" #n ", 2048+" #n "*8(%1)\n\t"
#define SEVEN(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7)
#define REST(f) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19) f(20) \
    f(21) f(22) f(23) f(24) f(25) f(26) f(27) f(28) f(29) f(30) f(31)
    register long r8 __asm__("r8") = pid;
    __asm__ volatile(SEVEN(EACH) REST(EACH) SEVEN(MASK)
                     "mov %0, %%r9\n\tmov %1, %%r10\n"
                     "1:\n\t"
                     "mov $24, %%eax\n\tsyscall\n\t"
                     "mov %%r8, %%rdi\n\tmov $10, %%esi\n\tmov $62, %%eax\n\tsyscall\n\t"
                     "mov $2000, %%eax\n2:\n\tdec %%eax\n\tjnz 2b\n\t"
                     "dec %%rdx\n\tjnz 1b\n\t"
                     "mov %%r9, %%rdi\n\tmov %%r10, %%rsi\n\t"
                     SEVEN(BACK) REST(BACK) SEVEN(KEEP) "vzeroupper"
                     : "+D"(from), "+S"(to), "+d"(rounds)
                     : "r"(r8)
                     : "rax", "rcx", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3",
                       "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                       "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                       "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31",
                       "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

static uint64_t next(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed ^ *seed >> 29;
}

/* The same steps in vectors and in plain code. */
static int arithmetic(uint64_t seed)
{
    uint64_t plain[64], kept[64], squeezed[64] = { 0 }, expected[64] = { 0 };
    uint32_t table[256], gathered[16];
    for (int i = 0; i < 64; i++)
        plain[i] = kept[i] = next(&seed);
    for (int i = 0; i < 256; i++)
        table[i] = (uint32_t)next(&seed);
    __m512i v[8], factor = _mm512_set1_epi64(0x9e3779b97f4a7c15);
    for (int i = 0; i < 8; i++)
        v[i] = _mm512_loadu_si512(kept + 8 * i);
    __mmask8 masks[8];
    for (int round = 0; round < 2000; round++)
        for (int i = 0; i < 8; i++) {
            v[i] = _mm512_mullo_epi64(v[i], factor);
            masks[i] = _mm512_cmpgt_epi64_mask(v[i], _mm512_setzero_si512());
            v[i] = _mm512_mask_xor_epi64(v[i], masks[i], v[i], _mm512_srli_epi64(v[i], 29));
            v[i] = _mm512_rol_epi64(v[i], 7);
        }
    for (int i = 0; i < 64; i++) {
        uint64_t x = plain[i];
        int positive = 0;
        for (int round = 0; round < 2000; round++) {
            __asm__ volatile("" : "+r"(x));
            x *= 0x9e3779b97f4a7c15;
            positive = (int64_t)x > 0;
            if (positive)
                x ^= x >> 29;
            x = x << 7 | x >> 57;
        }
        plain[i] = x;
        if (positive != (masks[i / 8] >> i % 8 & 1))
            return 1;
    }
    int to = 0;
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(kept + 8 * i, v[i]);
        _mm512_mask_compressstoreu_epi64(squeezed + to, masks[i], v[i]);
        to += __builtin_popcount(masks[i]);
    }
    for (int i = 0, at = 0; i < 64; i++)
        if (masks[i / 8] >> i % 8 & 1)
            expected[at++] = plain[i];
    __m512i indices = _mm512_and_si512(v[0], _mm512_set1_epi32(255));
    _mm512_storeu_si512(gathered, _mm512_i32gather_epi32(indices, table, 4));
    for (int i = 0; i < 16; i++)
        if (gathered[i] != table[((uint32_t *)kept)[i] & 255])
            return 2;
    return memcmp(kept, plain, sizeof kept) ? 3 : memcmp(squeezed, expected, sizeof squeezed) ? 4 : 0;
}

/* Masked accesses beside a page that is not there. */
static int edge(void)
{
    uint8_t *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    for (int left = 0; left <= 64; left++) {
        uint8_t *at = page + 4096 - left, out[64];
        for (int i = 0; i < left; i++)
            at[i] = (uint8_t)(i * 7 + left);
        __mmask64 mask = left == 64 ? ~0ull : (1ull << left) - 1;
        _mm512_storeu_si512(out, _mm512_maskz_loadu_epi8(mask, at));
        for (int i = 0; i < 64; i++)
            if (out[i] != (i < left ? (uint8_t)(i * 7 + left) : 0))
                return 1;
        _mm512_mask_storeu_epi8(at, mask, _mm512_set1_epi8((char)left));
        for (int i = 0; i < left; i++)
            if (at[i] != left)
                return 2;
    }
    return 0;
}

static int child(uint64_t seed, int seconds)
{
    static uint8_t from[ALL], to[ALL];
    time_t end = time(0) + seconds;
    signal(SIGUSR1, on_signal);
    long rounds = 0;
    do {
        for (int i = 0; i < ALL / 8; i++)
            ((uint64_t *)from)[i] = next(&seed);
        hold(from, to, getpid(), 20);
        if (memcmp(from, to, ALL))
            return 10;
        int failed = arithmetic(seed);
        if (failed)
            return 20 + failed;
        rounds++;
    } while (time(0) < end);
    return handled == rounds * 20 ? edge() : 30;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 3, failed = 0;
    enum { CHILDREN = 6 };
    for (int i = 0; i < CHILDREN; i++)
        if (fork() == 0)
            _exit(child(i * 12345 + 1, seconds));
    for (int i = 0; i < CHILDREN; i++) {
        int status = 0;
        wait(&status);
        if (status) {
            printf("VECTORS FAIL status %#x\n", status);
            failed = 1;
        }
    }
    if (!failed)
        puts("VECTORS PASS");
    return failed;
}
