"""Predicts PCR 4 and 9 of a direct kernel boot: a second implementation, from
the specifications alone, that the expected values in pcr_test.go were made with.

usage: predict.py KERNEL INITRD CMDLINE MEMORY-BYTES   (INITRD may be /dev/null)
"""
import hashlib
import struct
import sys


def u16(b, at):
    return struct.unpack_from("<H", b, at)[0]


def u32(b, at):
    return struct.unpack_from("<I", b, at)[0]


def authenticode(image, alg):
    pe = u32(image, 0x3C)
    optional = pe + 24
    directories = optional + (112 if u16(image, optional) == 0x20B else 96)
    headers, certificates = u32(image, optional + 60), 0
    h = hashlib.new(alg, image[: optional + 64])
    if u32(image, directories - 4) > 4:
        h.update(image[optional + 68 : directories + 32])
        h.update(image[directories + 40 : headers])
        certificates = u32(image, directories + 36)
    else:
        h.update(image[optional + 68 : headers])
    table = optional + u16(image, pe + 20)
    entries = [table + 40 * i for i in range(u16(image, pe + 6))]
    done = headers
    for at, size in sorted((u32(image, e + 20), u32(image, e + 16)) for e in entries):
        h.update(image[at : at + size])
        done += size
    h.update(image[done : len(image) - certificates])
    return h.digest()


def patched(image, initrd, memory):
    b = bytearray(image)
    b[0x210] = 0xB0
    b[0x211] |= 0x80
    struct.pack_into("<H", b, 0x224, 0xFE00)
    struct.pack_into("<I", b, 0x228, 0x20000)
    if initrd:
        low = memory if memory < 0xB0000000 else 0x80000000
        struct.pack_into("<II", b, 0x218, (low - 0x28000 - 1 - len(initrd)) & ~0xFFF, len(initrd))
    return bytes(b)


def linux(image):
    """The kernel in a unified kernel image's section .linux, or nothing."""
    pe = u32(image, 0x3C)
    table = pe + 24 + u16(image, pe + 20)
    for e in (table + 40 * i for i in range(u16(image, pe + 6))):
        if image[e : e + 8] == b".linux\0\0":
            return image[u32(image, e + 20) :][: u32(image, e + 8)]


def pcr(alg, digests):
    value = bytes(hashlib.new(alg).digest_size)
    for d in digests:
        value = hashlib.new(alg, value + d).digest()
    return value.hex()


def main():
    kernel, initrd = (open(name, "rb").read() for name in sys.argv[1:3])
    cmdline, memory = sys.argv[3], int(sys.argv[4])
    for alg in "sha256", "sha384":
        def digest(data):
            return hashlib.new(alg, data).digest()

        if linux(kernel):
            events = [authenticode(kernel, alg), digest(b"Calling EFI Application from Boot Option"), digest(bytes(4))]
            print(alg, "PCR 4 kernel inside started by the stub", pcr(alg, events))
            print(alg, "PCR 4 by the firmware", pcr(alg, events + [authenticode(linux(kernel), alg)]))
            print(alg, "PCR 12", pcr(alg, [digest((cmdline + "\0").encode("utf-16le"))] if cmdline else []))
            continue
        for name, image in ("as it is", kernel), ("patched", patched(kernel, initrd, memory)):
            print(alg, "PCR 4", name, pcr(alg, [
                authenticode(image, alg),
                digest(b"Calling EFI Application from Boot Option"),
                digest(bytes(4)),
            ]))
        for line in [cmdline + " initrd=initrd", "initrd=initrd " + cmdline] if initrd else [cmdline]:
            options = (line + "\0").encode("utf-16le") if line else b""
            print(alg, "PCR 9", repr(line), pcr(alg, [digest(options)] + [digest(initrd)] * bool(initrd)))


main()
