package output

// ioctlReadable is FIONREAD, <sys/filio.h>.
const ioctlReadable = 0x4004667f
