package placement

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	layoutMagic  = "OLAY"
	layoutFormat = 1
	// optionalFields is the first field number that a reader may ignore.
	optionalFields = 1000
)

// Append appends the encoding of the layout to b.
func (l *Layout) Append(b []byte) []byte {
	start := len(b)
	b = append(append(b, layoutMagic...), layoutFormat)
	b = appendUint(b, 1, l.number)
	b = appendUint(b, 2, uint64(l.bits))
	b = appendBytes(b, 3, []byte{byte(l.profile.Data), byte(l.profile.Parity)})
	b = appendBytes(b, 4, []byte{byte(l.reduced.Data), byte(l.reduced.Parity)})
	index := make(map[uint16]int, len(l.drives))
	for i := range l.drives {
		index[l.drives[i].Num] = i
		b = appendBytes(b, 5, l.drives[i].append(nil))
	}
	rows, table := l.distinctRows(index)
	b = appendBytes(b, 6, rows)
	b = appendBytes(b, 7, appendRuns(nil, table))
	b = appendBytes(b, 8, appendRuns(nil, l.epochs))
	b = appendBytes(b, 9, appendRuns(nil, l.spreads))
	if l.formers != nil {
		wide := make([]uint64, len(l.formers))
		for i, num := range l.formers {
			wide[i] = uint64(num)
		}
		b = appendBytes(b, 10, appendRuns(nil, wide))
	}
	if l.earlier != nil {
		var list []byte
		for _, e := range l.earlier {
			list = append(list, e.Standard.Data, e.Standard.Parity, e.Reduced.Data, e.Reduced.Parity)
		}
		b = appendBytes(b, 11, list)
	}
	if l.stages != nil {
		b = appendBytes(b, 12, appendRuns(nil, l.stages))
	}
	b = append(b, l.extra...)
	return binary.LittleEndian.AppendUint64(b, xxh3.Hash(b[start:]))
}

// distinctRows returns the rows of the table without repetition, in order of first use, as indexes
// into drives, and for each partition the number of its row.
func (l *Layout) distinctRows(index map[uint16]int) (rows []byte, table []uint64) {
	known := map[string]uint64{}
	table = make([]uint64, l.Partitions())
	var row []byte
	for p := range table {
		row = row[:0]
		members := l.members(uint32(p))
		for _, d := range members {
			row = protowire.AppendVarint(row, uint64(index[d]))
		}
		for range l.N() - len(members) {
			row = protowire.AppendVarint(row, uint64(len(l.drives))) // nobody yet
		}
		i, ok := known[string(row)]
		if !ok {
			i = uint64(len(known))
			known[string(row)] = i
			rows = append(rows, row...)
		}
		table[p] = i
	}
	return rows, table
}

func (d *Drive) append(b []byte) []byte {
	b = appendUint(b, 1, uint64(d.Num))
	b = appendBytes(b, 2, d.ID[:])
	b = appendBytes(b, 3, d.Node[:])
	b = appendBytes(b, 4, []byte(d.Zone))
	b = appendUint(b, 5, d.Capacity)
	return appendBytes(b, 6, []byte(d.Class))
}

// Decode reads a layout that Append made. It returns an error of kind Corrupt for bytes that are
// damaged or could not have been written by Append, and of kind Unsupported for a newer format or
// an unknown mandatory field.
func Decode(b []byte) (*Layout, error) {
	const op = "placement.Decode"
	head, tail := len(layoutMagic)+1, 8
	if len(b) < head+tail || string(b[:len(layoutMagic)]) != layoutMagic {
		return nil, errs.E(op, errs.Corrupt, "not a layout")
	}
	body := b[:len(b)-tail]
	if xxh3.Hash(body) != binary.LittleEndian.Uint64(b[len(body):]) {
		return nil, errs.E(op, errs.Corrupt, "the checksum of the layout does not match")
	}
	if v := b[len(layoutMagic)]; v != layoutFormat {
		return nil, errs.E(op, errs.Unsupported, fmt.Sprintf("layout format %d is unknown", v))
	}
	l, err := decodeBody(body[head:])
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	// One value has one encoding: what does not print back is not ours.
	if !bytes.Equal(l.Append(nil), b) {
		return nil, errs.E(op, errs.Corrupt, "the encoding of the layout is not canonical")
	}
	return l, nil
}

func decodeBody(b []byte) (*Layout, error) {
	l := &Layout{}
	var rows, table, epochs, spreads, formers, stages []byte
	for len(b) > 0 {
		f, size, err := nextField(b)
		if err != nil {
			return nil, err
		}
		switch {
		case f.num == 1:
			l.number = f.uint
		case f.num == 2 && f.uint <= MaxBits:
			l.bits = uint8(f.uint)
		case f.num == 3 && len(f.bytes) == 2:
			l.profile = profile(int(f.bytes[0]), int(f.bytes[1]))
		case f.num == 4 && len(f.bytes) == 2:
			l.reduced = profile(int(f.bytes[0]), int(f.bytes[1]))
		case f.num == 5 && len(l.drives) < MaxDrives:
			d, err := decodeDrive(f.bytes)
			if err != nil {
				return nil, err
			}
			l.drives = append(l.drives, d)
		case f.num == 6:
			rows = f.bytes
		case f.num == 7:
			table = f.bytes
		case f.num == 8:
			epochs = f.bytes
		case f.num == 9:
			spreads = f.bytes
		case f.num == 10:
			formers = f.bytes
		case f.num == 11:
			if l.earlier, err = decodeProfiles(f.bytes); err != nil {
				return nil, err
			}
		case f.num == 12:
			stages = f.bytes
		case f.num >= optionalFields:
			l.extra = append(l.extra, b[:size]...)
		case f.num <= 12:
			return nil, corrupt("field %d of the layout is out of range", f.num)
		default:
			return nil, unknown(f.num)
		}
		b = b[size:]
	}
	n := l.profile.N()
	if !l.profile.Valid() || !l.reduced.Valid() || l.reduced.N() > n || len(l.drives) < n || l.number == 0 {
		return nil, corrupt("profile %d+%d over %d drives is out of range", l.profile.Data, l.profile.Parity, len(l.drives))
	}
	for i, e := range l.earlier {
		if next := append(slices.Clone(l.earlier[i+1:]), Profiles{l.profile, l.reduced})[0]; e.Width() >= next.Width() {
			return nil, corrupt("the profiles that the layout had are out of order")
		}
	}
	if stages != nil {
		var err error
		if l.stages, err = decodeRuns[uint8](stages, l.Partitions(), uint64(len(l.earlier))); err != nil {
			return nil, err
		}
		if l.Narrow() == 0 {
			return nil, corrupt("no partition is narrow")
		}
	}
	if !slices.IsSortedFunc(l.drives, func(a, b Drive) int { return int(a.Num) - int(b.Num) }) {
		return nil, corrupt("drives are not in order")
	}
	if err := checkDrives(l.drives); err != nil {
		return nil, errs.As("placement.Decode", errs.Corrupt, err)
	}
	if err := l.decodeTable(rows, table); err != nil {
		return nil, err
	}
	var err error
	if l.epochs, err = decodeRuns[uint64](epochs, l.Partitions(), 1<<63-1); err != nil {
		return nil, err
	}
	if l.spreads, err = decodeRuns[uint8](spreads, l.Partitions(), uint64(n)); err != nil || formers == nil {
		return l, err
	}
	return l, l.decodeFormers(formers)
}

// decodeProfiles reads the profiles that a layout had.
func decodeProfiles(b []byte) (list []Profiles, err error) {
	if len(b) == 0 || len(b)%4 != 0 {
		return nil, corrupt("a profile is cut short")
	}
	for ; len(b) > 0; b = b[4:] {
		e := Profiles{profile(int(b[0]), int(b[1])), profile(int(b[2]), int(b[3]))}
		if !e.Standard.Valid() || !e.Reduced.Valid() || e.Reduced.N() > e.Width() {
			return nil, corrupt("a profile that the layout had is out of range")
		}
		list = append(list, e)
	}
	return list, nil
}

// decodeFormers reads who stood in the positions before. A former need not be in the layout any more.
func (l *Layout) decodeFormers(b []byte) error {
	list, err := decodeRuns[uint64](b, uint32(len(l.table)), 1<<16-1)
	if err != nil {
		return err
	}
	some := false
	l.formers = make([]uint16, len(list))
	for i, v := range list {
		l.formers[i] = uint16(v)
		some = some || v != 0
	}
	if !some {
		return corrupt("formers without any")
	}
	for i, num := range l.formers {
		if num != 0 && i%l.N() >= l.Width(uint32(i/l.N())) {
			return corrupt("a position that nobody has had has a former")
		}
	}
	for p := range l.Partitions() {
		for _, num := range l.former(p) {
			if num != 0 && slices.Contains(l.members(p), num) {
				return corrupt("partition %d has drive %d as a member and as a former one", p, num)
			}
		}
	}
	return nil
}

// decodeTable expands the table from its distinct rows.
func (l *Layout) decodeTable(rows, table []byte) error {
	n := l.N()
	const noDrive = -1
	var distinct []int
	for len(rows) > 0 {
		v, size := protowire.ConsumeVarint(rows)
		if size < 0 || v > uint64(len(l.drives)) || v == uint64(len(l.drives)) && l.stages == nil {
			return corrupt("a row of the table names a drive that is not there")
		}
		num := noDrive
		if v < uint64(len(l.drives)) {
			num = int(l.drives[v].Num)
		}
		distinct = append(distinct, num)
		rows = rows[size:]
	}
	count := len(distinct) / n
	if count == 0 || len(distinct)%n != 0 {
		return corrupt("a row of the table is cut short")
	}
	for i := range count {
		row := distinct[i*n : (i+1)*n]
		if end := slices.Index(row, noDrive); end >= 0 {
			row = row[:end]
		}
		if len(slices.Compact(slices.Sorted(slices.Values(row)))) != len(row) {
			return corrupt("a row of the table names a drive twice")
		}
	}
	index, err := decodeRuns[uint64](table, l.Partitions(), uint64(count-1))
	if err != nil {
		return err
	}
	l.table = make([]uint16, 0, n*len(index))
	for p, i := range index {
		for pos, num := range distinct[int(i)*n : (int(i)+1)*n] {
			if member := pos < l.Width(uint32(p)); member != (num != noDrive) {
				return corrupt("partition %d has more members than its profile, or fewer", p)
			}
			l.table = append(l.table, uint16(max(num, 0)))
		}
	}
	return nil
}

func decodeDrive(b []byte) (Drive, error) {
	var d Drive
	for len(b) > 0 {
		f, size, err := nextField(b)
		if err != nil {
			return d, err
		}
		switch {
		case f.num == 1 && f.uint < 1<<16:
			d.Num = uint16(f.uint)
		case f.num == 2 && len(f.bytes) == len(d.ID):
			d.ID = [16]byte(f.bytes)
		case f.num == 3 && len(f.bytes) == len(d.Node):
			d.Node = [16]byte(f.bytes)
		case f.num == 4:
			d.Zone = string(f.bytes)
		case f.num == 5:
			d.Capacity = f.uint
		case f.num == 6:
			d.Class = string(f.bytes)
		default:
			return d, unknown(f.num)
		}
		b = b[size:]
	}
	return d, nil
}

// appendRuns appends values as runs of (value, length).
func appendRuns[T uint8 | uint64](b []byte, values []T) []byte {
	for i := 0; i < len(values); {
		j := i
		for j < len(values) && values[j] == values[i] {
			j++
		}
		b = protowire.AppendVarint(b, uint64(values[i]))
		b = protowire.AppendVarint(b, uint64(j-i))
		i = j
	}
	return b
}

// decodeRuns expands runs to exactly count values, each at most limit.
func decodeRuns[T uint8 | uint64](b []byte, count uint32, limit uint64) ([]T, error) {
	values := make([]T, 0, count)
	for len(b) > 0 {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, corrupt("a run of the layout is cut short")
		}
		b = b[n:]
		length, n := protowire.ConsumeVarint(b)
		if n < 0 || v > limit || length > uint64(count)-uint64(len(values)) {
			return nil, corrupt("a run of the layout is out of range")
		}
		b = b[n:]
		for range length {
			values = append(values, T(v))
		}
	}
	if len(values) != int(count) {
		return nil, corrupt("the layout has %d entries for %d partitions", len(values), count)
	}
	return values, nil
}

// field is one wire field: a varint or bytes, by its wire type.
type field struct {
	num   protowire.Number
	uint  uint64
	bytes []byte
}

// nextField reads the field at the start of b and its whole size. Fields 1, 2 (layout) and 1, 5
// (drive) hold numbers, the others bytes; a wrong type leaves the other half zero, which the
// canonical check then refuses.
func nextField(b []byte) (field, int, error) {
	num, typ, head := protowire.ConsumeTag(b)
	if head < 0 {
		return field{}, 0, corrupt("a field of the layout has no valid tag")
	}
	f := field{num: num}
	size := -1
	switch typ {
	case protowire.VarintType:
		f.uint, size = protowire.ConsumeVarint(b[head:])
	case protowire.BytesType:
		f.bytes, size = protowire.ConsumeBytes(b[head:])
	default:
		size = protowire.ConsumeFieldValue(num, typ, b[head:])
	}
	if size < 0 {
		return field{}, 0, corrupt("field %d of the layout is cut short", num)
	}
	return f, head + size, nil
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func corrupt(format string, args ...any) error {
	return errs.E("placement.Decode", errs.Corrupt, fmt.Sprintf(format, args...))
}

func unknown(num protowire.Number) error {
	return errs.E("placement.Decode", errs.Unsupported, fmt.Sprintf("mandatory field %d of the layout is unknown", num))
}
