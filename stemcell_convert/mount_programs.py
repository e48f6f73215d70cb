"""Two small programs that let BOSH's agent handle bind-mounted disks as it handles devices.

In bind mode the agent takes the hint, a folder, for the device: it looks for it in the first column
of `mount`, and unmounts a disk by `umount <hint>`. The kernel puts the file behind the loop device
into that column, and unmounting the folder leaves /var/vcap/store mounted; so list_disk,
unmount_disk and migrate_disk go wrong (bosh-agent, platform/disk/linux_mounter.go). The agent's
PATH begins with /var/vcap/bosh/bin; these two are there, before the real ones, and only for it:

- `mount` without arguments shows a disk's folder as the source of where else the disk is mounted,
  and does not show that folder as mounted itself: as if it were a device;
- `mount ... -o remount` changes the flags of that mount only (`bind`): the agent does it to bind
  mounts, whose file system may be the host's, and root in a user namespace cannot remount that;
- `umount <folder of a disk>` unmounts the disk wherever else it is mounted, and the folder stays.

Everything else goes to the real programs.
"""

FOLDER = "/var/vcap/bosh/bin"

# Where persistent disks appear; the agent's bind mode expects what warden made of it.
DISK_FOLDER = "/warden-cpi-dev"

MOUNT = b"""#!/bin/sh
# Shows bind-mounted persistent disks as BOSH's agent expects devices; see bosh-containerd-cpi.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case "$#: $*" in
    0:*) ;;
    *" remount"* | *",remount"*) exec mount "$@" -o bind ;;
    *) exec mount "$@" ;;
esac
exec awk '
    # mountinfo: 3 device, 4 root of the mount, 5 where, 6 options, then "-", type, source (proc(5))
    NR == FNR { if ($5 ~ "^@DISKS@/.") disk[$3] = $5; next }
    {
        for (i = 7; $i != "-"; i++);
        type = $(i + 1); source = $(i + 2)
        if ($3 in disk) {
            if ($5 == disk[$3]) next
            if ($4 == "/") source = disk[$3]
        }
        print source " on " $5 " type " type " (" $6 ")"
    }
' /proc/self/mountinfo /proc/self/mountinfo
""".replace(b"@DISKS@", DISK_FOLDER.encode())

UMOUNT = rb"""#!/bin/sh
# Unmounts a bind-mounted persistent disk where it is in use; see bosh-containerd-cpi.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case "$#:$1" in
    1:@DISKS@/?*) ;;
    *) exec umount "$@" ;;
esac
targets=$(awk -v disk="$1" '
    NR == FNR { if ($5 == disk) device = $3; next }
    $3 == device && $4 == "/" && $5 != disk { found = $5 "\n" found }
    END { printf "%s", found }
' /proc/self/mountinfo /proc/self/mountinfo)
[ -n "$targets" ] || { echo "umount: $1: not mounted." >&2; exit 32; }
for target in $targets; do
    umount "$target" || exit
done
""".replace(b"@DISKS@", DISK_FOLDER.encode())
