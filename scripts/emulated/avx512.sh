#!/usr/bin/env bash
# Runs the kernels for AVX-512 on Bochs' Ice Lake, which has VNNI and VPOPCNTDQ, and fails where a path differs from the
# scalar one. Bochs emulates a whole machine, so a Linux starts in it first: a minute for that, half a second for each case.
# The one argument is the number of cases. Needs bochs, bochsbios, busybox-static, cpio, grub-pc-bin, mtools and xorriso; the
# kernel is KERNEL=FILE, or Debian's for the cloud, which is fetched and not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR=$PWD/target/emulated
# Static, so that it needs no libraries there.
RUSTFLAGS=-Ctarget-feature=+crt-static cargo build --quiet --locked --target $target --manifest-path scripts/emulated/Cargo.toml

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/disc/boot/grub"
if [ -z "${KERNEL:-}" ]; then
    image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$image" && dpkg -x "$image"_*.deb image)
    KERNEL=$(echo "$work"/image/boot/vmlinuz-*)
fi
cp "$KERNEL" "$work/disc/boot/vmlinuz"

strip -o "$work/root/kernels-alone" "$CARGO_TARGET_DIR/$target/debug/kernels-alone"
cp "$(command -v busybox)" "$work/root/bin/busybox"
cat >"$work/root/init" <<INIT
#!/bin/busybox sh
/bin/busybox mkdir /dev
/bin/busybox mount -t devtmpfs none /dev
/kernels-alone ${1:-300} >/dev/ttyS0 2>&1
echo "ended with \$?" >/dev/ttyS0
/bin/busybox sleep 2
/bin/busybox poweroff -f
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc | gzip -1 >"$work/disc/boot/initrd")

# Left out: copies by `rep movsb` (112, 297, 580), with which the kernel damages itself while it patches itself here, and
# what makes Bochs and the kernel disagree about the size of saved registers (323 XSAVES, 321 XSAVEC, 515 PKU).
cat >"$work/disc/boot/grub/grub.cfg" <<'GRUB'
set timeout=0
menuentry kernels {
    linux /boot/vmlinuz console=ttyS0 quiet nokaslr mitigations=off tsc=unstable lpj=1000000 clearcpuid=112,297,580,515,321,323
    initrd /boot/initrd
}
GRUB
grub-mkrescue -o "$work/disc.iso" "$work/disc" 2>/dev/null

cat >"$work/bochsrc" <<BOCHS
cpu: model=corei7_icelake_u, ips=50000000
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/said
sound: driver=dummy
plugin_ctrl: voodoo=0, sb16=0, es1370=0
display_library: rfb, options="timeout=0"
log: $work/log
panic: action=fatal
BOCHS
# Debian's Bochs begins in its debugger.
echo continue >"$work/debugger"
bochs -q -f "$work/bochsrc" -rc "$work/debugger" >/dev/null 2>&1 </dev/null || true
if ! grep -a -q 'ended with 0' "$work/said"; then
    cat "$work/said"
    exit 1
fi
grep -a '^kernels tested' "$work/said"
