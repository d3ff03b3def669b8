"""Files that are not what was written."""


def damage(path, how):
    "Flip eight bytes from a place on, or leave half of the file, nothing, or text of another kind."
    content = bytearray(path.read_bytes())
    if how in ("truncated", "empty", "text"):
        path.write_bytes({"truncated": bytes(content[:len(content)//2]), "empty": b"", "text": b"id,text\n"*1000}[how])
        return
    for i in range(8):
        content[how + i] ^= 0x41
    path.write_bytes(content)
