"""What holds bytes, wherever bytes are taken."""

Buffer = bytes | bytearray | memoryview
