# SPDX-License-Identifier: Apache-2.0 OR MIT
"""pinbed's commands for gdb: `pinbed holds`, `pinbed page ADDRESS`, `pinbed symbols`, `pinbed console`.

They read the stopped guest's memory through QEMU's gdb stub, and the device's side through the device's inspection socket.
Variables that `pinbed debug` sets before it sources this file: PINBED_MODULE, PINBED_INSPECT, PINBED_CONSOLE.
"""

import socket
import struct

import gdb

PAGE = 4096
PRESENT, LARGE = 1, 1 << 7
FRAME = 0x000F_FFFF_FFFF_F000
PIN = 1024  # GUP_PIN_COUNTING_BIAS
DIRECTIONS = ["both", "read", "write", "none"]  # of the device, by enum dma_data_direction


def setting(name, default):
    return globals().get(name, default)


def symbol(name):
    """The value of a global symbol, or None where this kernel lacks it."""
    try:
        return gdb.parse_and_eval(name)
    except gdb.error:
        return None


def number(value):
    try:
        return int(value.cast(gdb.lookup_type("unsigned long")))
    except gdb.error as error:
        raise gdb.GdbError(f"that is no address ({error})")


def container(pointer, kind, member):
    """container_of()."""
    kind = gdb.lookup_type(kind)
    offset = next(f.bitpos // 8 for f in kind.fields() if f.name == member)
    return gdb.Value(number(pointer) - offset).cast(kind.pointer())


def entries(head, kind, member):
    """The entries of a list_head."""
    entry = head["next"]
    while number(entry) != number(head.address):
        yield container(entry, kind, member)
        entry = entry["next"]


def has(value, member):
    """Whether a structure has a member, be it in an anonymous union of its own."""
    return has_field(value.type, member)


def has_field(kind, member):
    fields = kind.strip_typedefs().fields()
    return any(field.name == member or (not field.name and has_field(field.type, member)) for field in fields)


class Memory:
    """Guest memory by physical address, and its pages."""

    def __init__(self):
        base = symbol("page_offset_base")
        self.direct = number(base) if base is not None else 0xFFFF_8880_0000_0000
        base = symbol("vmemmap_base")
        self.map = number(base) if base is not None else 0xFFFF_EA00_0000_0000
        self.page = gdb.lookup_type("struct page")

    def read(self, physical, length):
        return bytes(gdb.selected_inferior().read_memory(self.direct + physical, length))

    def page_of(self, frame):
        return gdb.Value(self.map + frame * self.page.sizeof).cast(self.page.pointer())

    def frame_of(self, page):
        return (number(page) - self.map) // self.page.sizeof

    def table(self, physical):
        return struct.unpack("<512Q", self.read(physical & FRAME, PAGE))

    def root(self, mm):
        return number(mm["pgd"]) - self.direct

    def translate(self, mm, address):
        """(physical address, size of the page, entry), or None where nothing is mapped."""
        table = self.root(mm)
        for shift in (39, 30, 21, 12):
            index = (address >> shift) & 511
            entry = struct.unpack("<Q", self.read((table & FRAME) + 8 * index, 8))[0]
            if not entry & PRESENT:
                return None
            if shift == 12 or (shift < 39 and entry & LARGE):
                size = 1 << shift
                return (entry & FRAME & ~(size - 1)) + (address & (size - 1)), size, entry
            table = entry

    def mappings(self, mm, physical):
        """User addresses where this page is mapped, with the entry."""

        def walk(table, shift, base):
            for index, entry in enumerate(self.table(table)):
                if not entry & PRESENT or (shift == 39 and index > 255):
                    continue
                address = base + (index << shift)
                if shift == 12 or (shift < 39 and entry & LARGE):
                    size = 1 << shift
                    start = entry & FRAME & ~(size - 1)
                    if start <= physical < start + size:
                        yield address + (physical - start & ~(PAGE - 1)), entry
                else:
                    yield from walk(entry, shift - 9, address)

        return walk(self.root(mm), 39, 0)


def processes():
    """Each address space once, with a task that has it."""
    seen = set()
    init = symbol("init_task").address
    task = init
    while True:
        mm = task["mm"]
        if number(mm) and number(mm) not in seen:
            seen.add(number(mm))
            yield task, mm
        task = container(task["tasks"]["next"], "struct task_struct", "tasks")
        if number(task) == number(init):
            return


def name_of(task):
    return f"{task['comm'].string()}[{int(task['pid'])}]"


def bound():
    """The driver's struct pinbed_device, or None."""
    misc = symbol("&misc_list")
    if misc is None:
        return None
    for entry in entries(misc.dereference(), "struct miscdevice", "list"):
        if entry["name"].string() == "pinbed":
            try:
                return container(entry, "struct pinbed_device", "misc")
            except gdb.error:
                raise gdb.GdbError("the driver's symbols are not loaded; 'pinbed symbols' loads them")
    return None


def kernel_holds():
    """(handle, direction, [(address, length)]) as the driver has them. What it does not map itself (vb2 does) has no pieces here."""
    device = bound()
    if device is None:
        return
    for hold in entries(device["holds"], "struct pinbed_hold", "entry"):
        pieces = []
        if number(hold["sgt"]):
            table = hold["sgt"].dereference()
            sg = table["sgl"]
            for _ in range(int(table["nents"])):
                pieces.append((int(sg["dma_address"]), int(sg["dma_length"] if has(sg.dereference(), "dma_length") else sg["length"])))
                link = int(sg["page_link"])
                if link & 2:
                    break
                sg = sg + 1
                link = int(sg["page_link"])
                if link & 1:
                    sg = gdb.Value(link & ~3).cast(sg.type)
        yield int(hold["handle"]), DIRECTIONS[int(hold["direction"]) % 4], pieces


def device_holds():
    """{handle: (length, direction, protected, [(address, length)])} as the device process has them."""
    path = setting("PINBED_INSPECT", None)
    if path is None:
        return {}
    text = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(path)
            while piece := connection.recv(65536):
                text += piece
    except OSError as error:
        raise gdb.GdbError(f"the device does not answer at {path}: {error}")
    holds = {}
    for line in text.decode().splitlines():
        handle, length, direction, protected, *pieces = line.split()
        pieces = [tuple(int(part, 16) for part in piece.split("+")) for piece in pieces]
        holds[int(handle, 16)] = int(length, 16), direction, protected == "protected", pieces
    return holds


def plural(count, what):
    return f"{count} {what}" + ("" if count == 1 else "s")


def ranges(pieces, most=4):
    text = " ".join(f"{address:#x}+{length:#x}" for address, length in pieces[:most])
    return text + (f" ... ({plural(len(pieces), 'segment')})" if len(pieces) > most else "")


def zone_of(frame):
    node_data = symbol("node_data")
    for node in range(2):
        try:
            zones = node_data[node]["node_zones"] if node_data is not None else symbol("contig_page_data")["node_zones"]
            for index in range(zones.type.range()[1] + 1):
                zone = zones[index]
                start = int(zone["zone_start_pfn"])
                if start <= frame < start + int(zone["spanned_pages"]):
                    return f"{zone['name'].string()}, node {node}"
        except gdb.error:
            break
    return None


def cma_of(frame):
    areas, count = symbol("cma_areas"), symbol("cma_area_count")
    if areas is None or count is None:
        return None
    for index in range(int(count)):
        area = areas[index]
        parts = [area["ranges"][i] for i in range(int(area["nranges"]))] if has(area, "ranges") else [area]
        for part in parts:
            start = int(part["base_pfn"])
            if start <= frame < start + int(part["count"]):
                return area["name"].string()
    return None


def head_of(page):
    """The first page of the folio that a page belongs to: _compound_head() in include/linux/page-flags.h."""
    info = int(page["compound_info" if has(page.dereference(), "compound_info") else "compound_head"])
    if not info & 1:
        return page
    head = info - 1
    # On newer kernels it may be a mask for the page's own address: ones and then zeros, which no pointer to a struct page is.
    below = (1 << 64) - 1 - head
    if below & (below + 1) == 0:
        head &= int(page)
    return gdb.Value(head).cast(page.type)


def flag_bits(flags):
    """Flags of a page or folio, which are a structure (memdesc_flags_t) on newer kernels."""
    return int(flags["f"] if flags.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT else flags)


class Page:
    """What the kernel knows of a page."""

    def __init__(self, memory, frame):
        self.frame = frame
        page = memory.page_of(frame)
        self.page = page
        self.head = head_of(page)
        self.order = self.compound_order()
        self.references = int(self.head["_refcount"]["counter"])
        self.mapcount = int(page["_mapcount"]["counter"]) + 1
        flags = flag_bits(self.head["flags"])
        names = symbol("(enum pageflags)0")
        self.flags = []
        if names is not None:
            known = {f.enumval: f.name for f in reversed(names.type.fields())}
            self.flags = [known[bit][3:] for bit in range(24) if flags >> bit & 1 and bit in known]
        self.pins = self.pincount()

    def compound_order(self):
        if not self.is_head():
            return 0
        tail = self.head + 1
        if has(tail.dereference(), "compound_order"):
            return int(tail["compound_order"])
        try:
            folio = self.head.cast(gdb.lookup_type("struct folio").pointer())
            return flag_bits(folio["_flags_1"]) & 0xFF
        except gdb.error:
            return 0

    def is_head(self):
        bits = flag_bits(self.head["flags"])
        head = symbol("(int)PG_head")
        return head is not None and bool(bits >> int(head) & 1)

    def pincount(self):
        """FOLL_PIN pins: a counter of its own in large folios, else in the reference count, 1024 each."""
        if self.order:
            try:
                folio = self.head.cast(gdb.lookup_type("struct folio").pointer())
                return int(folio["_pincount"]["counter"])
            except gdb.error:
                pass
            for page, member in ((self.head + 2, "hpage_pinned_refcount"), (self.head + 1, "compound_pincount")):
                if has(page.dereference(), member):
                    return int(page[member]["counter"])
        return self.references // PIN if self.references > 0 else 0

    def backing(self):
        mapping = int(self.head["mapping"])
        if "slab" in self.flags:
            return "slab"
        if mapping & 1:
            return "KSM" if mapping & 3 == 3 else "anonymous"
        if mapping == 0:
            return "no mapping"
        space = gdb.Value(mapping).cast(gdb.lookup_type("struct address_space").pointer())
        inode = space["host"]
        try:
            kind = inode["i_sb"]["s_type"]["name"].string()
            return f"inode {int(inode['i_ino'])} of {kind}, page {int(self.head['index'])}"
        except gdb.error:
            return f"address_space {mapping:#x}"


def current():
    """The task that runs on the selected CPU, or None."""
    for expression in ("$lx_current()",):
        try:
            return gdb.parse_and_eval(expression).address
        except (gdb.error, gdb.MemoryError):
            pass
    return None


class PinbedCommand(gdb.Command):
    """What pinbed knows of the stopped guest. "pinbed help" lists the commands."""

    def __init__(self):
        super().__init__("pinbed", gdb.COMMAND_DATA, prefix=True)


class HoldsCommand(gdb.Command):
    """pinbed holds: the memory that the device holds, as the driver and as the device have it."""

    def __init__(self):
        super().__init__("pinbed holds", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        driver = {handle: (direction, pieces) for handle, direction, pieces in kernel_holds()}
        device = device_holds()
        if not driver and not device:
            print("The device holds nothing.")
        for handle in sorted(driver.keys() | device.keys()):
            if handle in device:
                length, direction, protected, pieces = device[handle]
                extra = ", protected" if protected else ""
                print(f"handle {handle}: {length} bytes, the device may {direction}{extra}: {ranges(pieces)}")
                if handle not in driver:
                    print("  the driver does not know it: an ATTACH or a DETACH is under way, or its answer was lost")
            else:
                direction, pieces = driver[handle]
                print(f"handle {handle}: held by the driver ({direction}): {ranges(pieces)}")
                print("  the device does not hold it: an ATTACH is under way, or was refused")


class PageCommand(gdb.Command):
    """pinbed page ADDRESS: who maps, pins and holds a page.

ADDRESS is an expression: a user address of the task that runs (or of the only test that maps it), a pointer to struct page or
struct folio, an address in the kernel's direct map, or phys:NUMBER for a physical one."""

    def __init__(self):
        super().__init__("pinbed page", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def physical(self, memory, argument):
        if argument.startswith("phys:"):
            return int(argument[5:], 0)
        value = gdb.parse_and_eval(argument)
        kind = value.type.strip_typedefs()
        if kind.code == gdb.TYPE_CODE_PTR and str(kind.target().unqualified()) in ("struct page", "struct folio"):
            return memory.frame_of(value) * PAGE
        address = number(value)
        if address >= memory.map and address < memory.map + (1 << 40):
            return memory.frame_of(value) * PAGE
        if address >= 1 << 47:
            return address - memory.direct
        task = current()
        if task is not None and number(task["mm"]):
            found = memory.translate(task["mm"], address)
            if found:
                print(f"{name_of(task)} maps {address:#x}")
                return found[0]
        for task, mm in processes():
            found = memory.translate(mm, address)
            if found and int(task["pid"]) != 1:
                print(f"{name_of(task)} maps {address:#x}")
                return found[0]
        raise gdb.GdbError(f"no process maps {address:#x} now (not faulted in, or moved)")

    def invoke(self, argument, from_tty):
        if not argument:
            raise gdb.GdbError("usage: pinbed page ADDRESS")
        memory = Memory()
        physical = self.physical(memory, argument)
        frame = physical // PAGE
        page = Page(memory, frame)
        place = [text for text in (zone_of(frame), cma_of(frame) and f"CMA region {cma_of(frame)}") if text]
        print(f"physical {physical:#x}, page frame {frame:#x}, struct page {int(page.page):#x}")
        print(f"  lies in {', '.join(place) or 'no zone'}; {page.backing()}" + (f"; of a folio of {1 << page.order} pages" if page.order else ""))
        print(f"  flags {' '.join(page.flags) or '-'}")
        print(f"  {plural(page.references, 'reference')}, {plural(page.pins, 'pin')} (FOLL_PIN), mapped {plural(page.mapcount, 'time')}")
        mapped = False
        for task, mm in processes():
            for address, entry in memory.mappings(mm, physical & ~(PAGE - 1)):
                mapped = True
                print(f"  mapped by {name_of(task)} at {address:#x}, {'writable' if entry & 2 else 'read-only'}{', dirty' if entry & 64 else ''}")
        if not mapped:
            print("  mapped by no process")
        held = False
        for handle, (length, direction, protected, pieces) in sorted(device_holds().items()):
            if any(address < physical // PAGE * PAGE + PAGE and physical // PAGE * PAGE < address + size for address, size in pieces):
                held = True
                print(f"  held by the device: handle {handle}, {length} bytes, may {direction}")
        if not held:
            print("  not held by the device")


class SymbolsCommand(gdb.Command):
    """pinbed symbols: loads the symbols of pinbed.ko where the guest has loaded it."""

    def __init__(self):
        super().__init__("pinbed symbols", gdb.COMMAND_DATA)
        self.loaded = None

    def invoke(self, argument, from_tty):
        modules = symbol("modules")
        for module in entries(modules, "struct module", "list") if modules is not None else []:
            if module["name"].string() == "pinbed":
                self.load(module)
                return
        print("pinbed.ko is not loaded in the guest.")

    def load(self, module):
        places = dict(sections(module))
        text = places.pop(".text", None)
        if text is None or self.loaded == text:
            return
        path = setting("PINBED_MODULE", "pinbed.ko")
        if self.loaded is not None:
            gdb.execute(f"remove-symbol-file -a {self.loaded}", to_string=True)
        wanted = (".data", ".bss", ".rodata", ".init.text", ".exit.text", ".text.unlikely", ".data..read_mostly")
        others = " ".join(f"-s {name} {places[name]:#x}" for name in wanted if name in places)
        gdb.execute(f"add-symbol-file {path} {text:#x} {others}", to_string=True)
        self.loaded = text


def sections(module):
    """The names and addresses of a module's sections."""
    attributes = module["sect_attrs"]["grp"]["bin_attrs"]
    index = 0
    while number(attributes[index]):
        attribute = attributes[index]
        try:
            address = int(attribute.cast(gdb.lookup_type("struct module_sect_attr").pointer())["address"])
        except gdb.error:
            address = number(attribute["private"])
        yield attribute["attr"]["name"].string(), address
        index += 1


class ConsoleCommand(gdb.Command):
    """pinbed console [LINES]: the last lines on the guest's console."""

    def __init__(self):
        super().__init__("pinbed console", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        try:
            with open(setting("PINBED_CONSOLE", "console.log"), errors="replace") as log:
                lines = log.read().splitlines()
        except OSError as error:
            raise gdb.GdbError(str(error))
        print("\n".join(lines[-int(argument or 30):]))


class ModuleLoads(gdb.Breakpoint):
    """Loads the driver's symbols before its first instruction, so that breakpoints in it can be set before the guest boots."""

    def __init__(self, then):
        super().__init__("do_init_module", internal=True)
        self.silent = True
        self.then = then

    def stop(self):
        module = gdb.parse_and_eval("mod")
        if module["name"].string() == "pinbed":
            SYMBOLS.load(module)
            self.then()
        return False


class HoldBegins(gdb.Breakpoint):
    """The driver's first ATTACH that no ioctl of videobuf2 leads to: REQBUFS has one for memory of its own, and QBUF is still to come."""

    def stop(self):
        frame = gdb.newest_frame()
        while frame is not None and frame.name() is not None:
            if "vb2_" in frame.name():
                return False
            frame = frame.older()
        return True


# The first of these that is reached in a test ends the wait for it.
STARTS = ["vb2_core_qbuf", "tee_shm_register_user_buf", "tee_shm_register", "tee_shm_alloc_user_buf"]


FOLLOWERS = []


def follow_modules():
    """From now on the driver's symbols are loaded when its module is; breakpoints in it may wait for that."""
    gdb.execute("set breakpoint pending on")
    ModuleLoads(lambda: [then() for then in FOLLOWERS])


def start(places):
    """Boots the guest up to the first of these places: those of --break, or where a test gives memory to the kernel."""
    points = []
    if places:
        for place in places:
            gdb.execute(f"break {place}", to_string=True)
    else:
        points = [gdb.Breakpoint(name, internal=True) for name in STARTS if symbol(name) is not None]
        FOLLOWERS.append(lambda: points.append(HoldBegins("pinbed_hold_begin", internal=True)))
    gdb.execute("continue")
    for point in points:
        if point.is_valid():
            point.delete()


PinbedCommand()
HoldsCommand()
PageCommand()
SYMBOLS = SymbolsCommand()
ConsoleCommand()
