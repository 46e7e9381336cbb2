"""What disks, cores and hands need: files that are whole, folders with one owner, bars, devices."""
