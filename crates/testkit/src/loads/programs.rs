//! The loads.

use super::Load;

const NONE: Load = Load { name: "", packages: &[], modules: &[], files: &[], script: "", memory: 512 };

pub const LOADS: &[Load] = &[
    Load {
        name: "luajit",
        packages: &["luajit"],
        files: &[("load.lua", LUA)],
        script: "luajit /load.lua || echo FAIL: ended with $?; luajit -joff /load.lua || echo FAIL: ended with $?",
        ..NONE
    },
    Load {
        name: "python",
        packages: &["python3.11-minimal", "libpython3.11-stdlib"],
        files: &[("load.py", PYTHON)],
        script: "python3.11 /load.py || echo FAIL: python ended with $?",
        memory: 768,
        ..NONE
    },
    Load {
        name: "go",
        packages: &["age", "fzf"],
        script: GO,
        ..NONE
    },
    Load {
        name: "gdb",
        packages: &["gdb-minimal", "luajit"],
        files: &[("steps.gdb", GDB)],
        script: "gdb -nx -batch -x /steps.gdb --args luajit -e 'print(6*7)' >/tmp/out 2>&1; tail -n 5 /tmp/out
                 grep -q 'STEPPED 4000' /tmp/out && echo PASS: 4000 steps || echo FAIL: steps
                 grep -q '^42' /tmp/out && grep -q 'exited normally' /tmp/out && echo PASS: the program ran on || echo FAIL: end",
        ..NONE
    },
    Load {
        name: "stress",
        packages: &["stress-ng"],
        script: STRESS,
        memory: 768,
        ..NONE
    },
    Load {
        name: "modules",
        modules: &["dummy", "loop"],
        script: MODULES,
        ..NONE
    },
    Load { name: "ftrace", script: FTRACE, ..NONE },
    Load { name: "contention", script: CONTENTION, ..NONE },
];

/// Results are compared with ones that need no JIT.
const LUA: &str = r#"
local function check(what, got, wanted)
  print((got == wanted and "PASS: " or "FAIL: ") .. what .. " " .. tostring(got))
end
local mode = jit.status() and "jit " or "interpreted "
local function sieve(n)
  local p, count = {}, 0
  for i = 2, n do p[i] = true end
  for i = 2, n do
    if p[i] then
      count = count + 1
      for k = i * i, n, i do p[k] = false end
    end
  end
  return count
end
check(mode .. "sieve", sieve(400000), 33860)
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
check(mode .. "fib", fib(25), 75025)
local bit = require("bit")
local h = 2166136261
for i = 1, 300000 do h = bit.bxor(bit.rol(h, 5), i * 3) % 4294967296 end
check(mode .. "hash stays a number", h >= 0 and h < 4294967296, true)
local s = 0
for i = 1, 1000000 do s = s + 1 / (i * i) end
check(mode .. "sum", string.format("%.10f", s), "1.6449330668")
local parts = {}
for i = 1, 20000 do parts[#parts + 1] = tostring(i % 97) end
local text = table.concat(parts, ",")
local n = 0
for word in text:gmatch("%d+") do n = n + tonumber(word) end
check(mode .. "strings", n, 959307)
local ffi = require("ffi")
local a = ffi.new("uint32_t[4096]")
for round = 1, 50 do for i = 0, 4095 do a[i] = a[i] + i * round end end
check(mode .. "ffi", a[4095], 4095 * 1275)
local ok = pcall(function() error("x") end)
check(mode .. "pcall", ok, false)
"#;

const PYTHON: &str = r#"
import hashlib, json, random, re, struct, threading, zlib, math, itertools
def check(what, ok): print(("PASS: " if ok else "FAIL: ") + what)
check("sha256", hashlib.sha256(b"a" * 1000000).hexdigest() ==
      "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
check("md5", hashlib.md5(b"abc").hexdigest() == "900150983cd24fb0d6963f7d28e17f72")
random.seed(1)
data = bytes(random.getrandbits(8) for _ in range(200000))
check("zlib", zlib.decompress(zlib.compress(data, 9)) == data)
check("crc32", zlib.crc32(b"123456789") == 0xcbf43926)
tree = {"list": [random.random() for _ in range(5000)], "text": "\u20ac" * 1000}
check("json", json.loads(json.dumps(tree)) == tree)
check("big numbers", pow(3, 20000, 10**40 + 121) * pow(3, -20000, 10**40 + 121) % (10**40 + 121) == 1)
check("factorial", sum(map(int, str(math.factorial(1000)))) == 10539)
check("floats", all(float(repr(x)) == x for x in (random.uniform(-1e300, 1e300) for _ in range(20000))))
check("struct", struct.unpack("<dfq", struct.pack("<dfq", 0.1, 0.5, -7)) == (0.1, 0.5, -7))
check("regular expressions", len(re.findall(r"(?i)\b[a-f]+\d{2,3}\b", "abc12 x9 FACE123 dead1 " * 2000)) == 4000)
total, lock = 0, threading.Lock()
def work():
    global total
    for i in range(20000):
        with lock: total += i
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
check("threads", total == 4 * 199990000)
check("sorting", sorted(itertools.permutations("fedcba"))[100] == tuple("afbecd") and
      sorted(data) == [b for b in range(256) for _ in range(data.count(b))])
class Tree:
    def __init__(self, d): self.l, self.r = (Tree(d - 1), Tree(d - 1)) if d else (None, None)
    def count(self): return 1 + (self.l.count() + self.r.count() if self.l else 0)
check("objects", sum(Tree(10).count() for _ in range(5)) == 5 * 2047)
"#;

/// age is written in Go: its cryptography is Go's own, in assembly; fzf runs goroutines.
const GO: &str = r#"
dd if=/dev/urandom of=/tmp/plain bs=1M count=8 2>/dev/null
age-keygen -o /tmp/key 2>/tmp/public || echo FAIL: key
to=$(sed -n 's/^Public key: //p' /tmp/public)
for n in 1 2 3; do
  age -r "$to" -o /tmp/secret /tmp/plain && age -d -i /tmp/key -o /tmp/back /tmp/secret
  cmp /tmp/plain /tmp/back && echo PASS: age round $n || echo FAIL: age round $n
done
cp /tmp/secret /tmp/broken; printf x | dd of=/tmp/broken bs=1 seek=5000000 conv=notrunc 2>/dev/null
age -d -i /tmp/key -o /tmp/back /tmp/broken 2>/dev/null && echo FAIL: damage went unnoticed || echo PASS: damage noticed
seq 1 200000 >/tmp/numbers
a=$(fzf -e --filter 4242 </tmp/numbers | wc -l); b=$(grep -c 4242 /tmp/numbers)
[ "$a" = "$b" ] && echo PASS: fzf found $a || echo FAIL: fzf found $a of $b
"#;

const GDB: &str = "\
set pagination off
set disable-randomization on
set breakpoint pending on
starti
set $n = 0
while $n < 4000
  stepi
  set $n = $n + 1
end
printf \"STEPPED %d\\n\", $n
continue
";

const STRESS: &str = r#"
cpus=$(nproc); part=$((TIME / 6 + 1)); cd /tmp
run() {
  echo "stress-ng $*"
  stress-ng --verify --metrics-brief -t $part "$@" >/tmp/out 2>&1 && ! grep -q 'fail:' /tmp/out \
    && echo "PASS: $1 $2" || { cat /tmp/out; echo "FAIL: $1 $2"; }
}
run --cpu $cpus --cpu-method all
run --vm $cpus --vm-bytes 64M --vm-method all
run --atomic $((2 * cpus))
run --sigfpe 1 --sigsegv 1 --sigtrap 1 --signest 1
run --fork 2 --vfork 1 --mmapfork 1
run --matrix $cpus --vecmath 1 --qsort 1 --futex 2
"#;

const MODULES: &str = r#"
end=$(($(date +%s) + TIME)); rounds=0
(while :; do gzip -c /bin/busybox | sha256sum >/tmp/sum; done) & one=$!
(while :; do awk 'BEGIN { for (i = 0; i < 3000; i++) s += i * i }'; done) & two=$!
while [ $rounds -lt 5 ] || [ $(date +%s) -lt $end ]; do
  insmod /modules/dummy.ko && ip link add d0 type dummy && ip link set d0 up && ip link del d0 && rmmod dummy \
    || echo FAIL: dummy in round $rounds
  insmod /modules/loop.ko || echo FAIL: loop in round $rounds
  mknod /tmp/loop0 b 7 0 2>/dev/null
  losetup /tmp/loop0 /bin/busybox && cmp -n 65536 /tmp/loop0 /bin/busybox && losetup -d /tmp/loop0 \
    || echo FAIL: loop device in round $rounds
  rmmod loop || echo FAIL: rmmod loop in round $rounds
  rounds=$((rounds + 1))
done
kill $one $two
echo PASS: $rounds rounds
"#;

const FTRACE: &str = r#"
mount -t tracefs trace /sys/kernel/tracing || echo FAIL: no tracefs
cd /sys/kernel/tracing
end=$(($(date +%s) + TIME)); rounds=0
(while :; do gzip -c /bin/busybox | sha256sum >/tmp/sum; done) & one=$!
(while :; do ls -lR /sys/class >/dev/null; (:) ; done) & two=$!
while [ $rounds -lt 3 ] || [ $(date +%s) -lt $end ]; do
  for tracer in function nop function_graph nop; do
    echo $tracer >current_tracer || echo FAIL: $tracer in round $rounds
    [ $tracer = nop ] || lines=$(head -n 200 trace | grep -vc '^#')
  done
  echo 1 >events/sched/enable && echo 1 >events/syscalls/enable; ls /proc >/dev/null
  echo 0 >events/enable
  echo 'p:probe do_sys_openat2' >kprobe_events && echo 1 >events/kprobes/probe/enable && cat /proc/version >/dev/null
  echo 0 >events/kprobes/probe/enable; echo >kprobe_events
  rounds=$((rounds + 1))
done
[ "$lines" -gt 100 ] && echo PASS: $rounds rounds || echo FAIL: nothing was traced
kill $one $two
"#;

/// Four processes want the same locks all the time: a file's, a folder's, a pipe's, a mutex in
/// the shape of a folder. What each of them did must be there in the end.
const CONTENTION: &str = r#"
cd /tmp; mkdir d
end=$(($(date +%s) + TIME))
work() {
  n=0
  while [ $n -lt 50 ] || [ $(date +%s) -lt $end ]; do
    for i in 0 1 2 3 4 5 6 7 8 9; do
      echo $1 >>lines; mkdir d/$1$i; mv d/$1$i d/$1; rmdir d/$1; echo $1
    done
    until mkdir mutex 2>/dev/null; do :; done
    read c <counter; echo $((c + 1)) >counter; rmdir mutex
    n=$((n + 1))
  done
  echo $n >rounds$1
}
echo 0 >counter; : >lines
(work a & work b & work c & work d & wait) | cat >piped
total=0; for w in a b c d; do total=$((total + $(cat rounds$w))); done
is() { [ "$2" = "$3" ] && echo PASS: $1 $2 || echo FAIL: $1 $2, not $3; }
is "appended lines" $(wc -l <lines) $((10 * total))
is "piped lines" $(wc -l <piped) $((10 * total))
is "lines of one" $(grep -c '^a$' lines) $((10 * $(cat roundsa)))
is "counted under a mutex" $(cat counter) $total
is "folders left" $(ls d | wc -l) 0
"#;
