//! `-sandbox on`: all threads are filtered, and a guest with disk and monitor runs as without.

use testkit::Linux;

#[test]
fn a_guest_runs_in_the_sandbox() {
    let args = [
        "-m",
        "256",
        "-smp",
        "2",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-drive",
        "driver=null-co,size=1M,if=virtio",
    ];
    let mut linux = Linux::boot("linux-image-cloud-amd64", &args).unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", linux.vm.pid())).unwrap();
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
        assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
    }
    assert_eq!(linux.complaints().unwrap(), Vec::<String>::new());
    linux.power_off().unwrap();
}
