package main

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/remora-storage/remora/blockdev/disk"
	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/snapshotter/start"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// filled returns a value all of whose fields are set, each to something else.
func filled[T any]() T {
	var v T
	n := int64(0)
	fill(reflect.ValueOf(&v).Elem(), &n)
	return v
}

func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(*n)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Interface:
		if v.Type() == reflect.TypeFor[error]() {
			v.Set(reflect.ValueOf(fmt.Errorf("error %d", *n)))
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000+*n, 0)))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), n)
			}
		}
	}
}

// TestMessagesHaveEverything: of what is known in full, no field of a message stays empty, and no two are the same.
func TestMessagesHaveEverything(t *testing.T) {
	head := filled[volume.Head]()
	head.Mode = volume.ModeReadOnly
	inspected := &controlv1.InspectVolumeResponse{Volume: &controlv1.Volume{}}
	addUse(inspected, filled[volume.Status](), filled[host.Requests](), time.Hour)
	for name, c := range map[string]struct {
		message proto.Message
		others  []protoreflect.Name // that somebody else sets
	}{
		"back end":        {message: backendMessage(filled[snapshotter.Capabilities]())},
		"layer":           {message: layerMessage(filled[snapshotter.LayerStatus]())},
		"broken snapshot": {message: brokenMessage(filled[snapshotter.BrokenSnapshot]())},
		"damaged file":    {message: damagedMessage(filled[durable.Damage]())},
		"waiting reader":  {message: waitingMessage(filled[snapshotter.WaitingReader]())},
		"cache entry":     {message: cacheEntryMessage(filled[snapshotter.CachedLayer]())},
		"document":        {message: documentMessage(filled[start.Document]())},
		"import":          {message: importMessage(snapshotter.Progress{Digest: "d", Came: 1, Total: 2}), others: []protoreflect.Name{"done"}},
		"span":            {message: spanMessage(filled[layers.Span]())},
		"disk":            {message: diskMessage(filled[disk.Disk]())},
		"head": {message: headMessage("file:/store", &head, head.Owner.Node),
			others: []protoreflect.Name{"device", "failed", "error", "state", "mount_points"}},
		"event":   {message: eventMessage(filled[volume.Event]())},
		"report":  {message: reportMessage(new(filled[volume.Report]()), "repaired")},
		"rebuilt": {message: rebuiltMessage(new(filled[volume.Rebuilt]()))},
		"use": {message: inspected, others: []protoreflect.Name{
			"store_error", "stored_bytes", "stored_objects", "max_age", "committed_write", "tail_segments", "journal", "events",
		}},
	} {
		t.Run(name, func(t *testing.T) { checkFull(t, c.message.ProtoReflect(), c.others) })
	}
	if inspected.GetVolume().GetFailed() == "" {
		t.Error("use: why the volume has failed is missing")
	}
}

func checkFull(t *testing.T, m protoreflect.Message, others []protoreflect.Name) {
	t.Helper()
	seen := map[string]protoreflect.Name{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		value := m.Get(fd)
		switch {
		case slices.Contains(others, fd.Name()):
			continue
		case !m.Has(fd):
			t.Errorf("%s is empty", fd.FullName())
			continue
		case fd.IsList() && fd.Message() != nil:
			for i := range value.List().Len() {
				checkFull(t, value.List().Get(i).Message(), nil)
			}
		case fd.Message() != nil && fd.Message().ParentFile().Package() == m.Descriptor().ParentFile().Package() && fd.Name() != "volume":
			checkFull(t, value.Message(), nil)
		}
		if fd.Kind() == protoreflect.BoolKind || fd.IsList() {
			continue
		}
		content := value.String()
		if fd.Message() != nil {
			content = fmt.Sprint(value.Message().Interface())
		}
		if other, ok := seen[content]; ok {
			t.Errorf("%s is what %s is: %s", fd.FullName(), other, content)
		}
		seen[content] = fd.Name()
	}
}

// TestTextIsUTF8: what comes from outside may be any bytes, and must not keep an answer from being sent.
func TestTextIsUTF8(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"command": waitingMessage(snapshotter.WaitingReader{Command: "caf\xe9"}),
		"mount":   brokenMessage(snapshotter.BrokenSnapshot{Mounted: "/mnt/\xff"}),
		"damaged": damagedMessage(durable.Damage{File: "\xff", Aside: "\xff"}),
		"file":    diskMessage(disk.Disk{Source: fileSource + "/\xff", Reason: "\xfe"}),
		"span":    spanMessage(layers.Span{What: "\xff", Err: errors.New("\xff")}),
		"problem": reportMessage(&volume.Report{Problems: []string{"\xff"}}, ""),
	} {
		if _, err := proto.Marshal(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := text("caf\xe9"); got != "caf\uFFFD" {
		t.Errorf("got %q", got)
	}
}
