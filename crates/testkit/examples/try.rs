fn main() {
    println!("{:?}", testkit::foreign::kernel_i386());
    println!("{:?}", testkit::guests::memtest());
    println!("{:?}", testkit::guests::installer());
    let k = testkit::guests::kernel("linux-image-cloud-amd64").unwrap();
    let i = testkit::guests::initramfs(testkit::guests::SHELL, &[]).unwrap();
    println!(
        "{:?}",
        testkit::disk::grub(
            "grub",
            &testkit::disk::Content { kernel: &k, initrd: &i, command_line: "console=ttyS0" }
        )
    );
}
