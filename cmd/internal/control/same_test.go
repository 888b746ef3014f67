package control

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// object is v in JSON, with numbers as they stand there.
func object(t *testing.T, v any) map[string]any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	o := map[string]any{}
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return o
}

// otherNames are keys whose field has another name, since it is a keyword of some languages.
var otherNames = map[protoreflect.Name]string{"purpose": "for", "damaged_id": "from"}

// secondsOf are keys of durations whose field has another name.
var secondsOf = map[protoreflect.FullName]string{
	"remora.control.v1.Layer.waited":      "wait_seconds",
	"remora.control.v1.Waiting.waited":    "seconds",
	"remora.control.v1.VolumeWait.waited": "seconds",
}

// checkSame compares what is in JSON with a message: every field that is set, and nothing else, must be there.
func checkSame(t *testing.T, where string, o map[string]any, m protoreflect.Message) {
	t.Helper()
	used := map[string]bool{}
	sameFields(t, where, o, m, used)
	for key, v := range o {
		if !used[key] {
			t.Errorf("%s: JSON has %q: %v, of no field of %s", where, key, v, m.Descriptor().FullName())
		}
	}
}

func sameFields(t *testing.T, where string, o map[string]any, m protoreflect.Message, used map[string]bool) {
	t.Helper()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		key := string(fd.Name())
		if other := otherNames[fd.Name()]; other != "" {
			key = other
		}
		if isDuration(fd) {
			key = durationKey(o, fd)
		}
		v, ok := o[key]
		used[key] = true
		switch {
		case ok:
			sameValue(t, where+"."+key, v, fd, m)
		case !m.Has(fd): // left out
		case fd.Message() != nil && !fd.IsList() && !fd.IsMap() && !isDuration(fd): // its fields are in this object
			sameFields(t, where, o, m.Get(fd).Message(), used)
		default:
			t.Errorf("%s: %s is not in JSON", where, fd.FullName())
		}
	}
}

func isDuration(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Duration"
}

// durationKey returns where a duration is: in seconds, but for a few structs that nobody prints.
func durationKey(o map[string]any, fd protoreflect.FieldDescriptor) string {
	name := string(fd.Name())
	for _, key := range []string{secondsOf[fd.FullName()], name + "_ns", name} {
		if _, ok := o[key]; ok && key != "" {
			return key
		}
	}
	return name + "_seconds"
}

func sameValue(t *testing.T, where string, v any, fd protoreflect.FieldDescriptor, m protoreflect.Message) {
	t.Helper()
	value := m.Get(fd)
	switch {
	case fd.IsMap():
		o := v.(map[string]any)
		if len(o) != value.Map().Len() {
			t.Errorf("%s: %d entries, want %d", where, len(o), value.Map().Len())
		}
		value.Map().Range(func(k protoreflect.MapKey, want protoreflect.Value) bool {
			if got := o[k.String()]; got != want.String() {
				t.Errorf("%s[%s] = %v, want %s", where, k, got, want)
			}
			return true
		})
	case fd.IsList():
		got, ok := v.([]any)
		if !ok || len(got) != value.List().Len() {
			t.Fatalf("%s = %v, want %d elements", where, v, value.List().Len())
		}
		for i := range got {
			same(t, fmt.Sprintf("%s[%d]", where, i), got[i], fd, value.List().Get(i))
		}
	default:
		same(t, where, v, fd, value)
	}
}

// same compares one value.
func same(t *testing.T, where string, got any, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
	t.Helper()
	want := ""
	switch {
	case fd.Kind() == protoreflect.BytesKind:
		want = base64.StdEncoding.EncodeToString(value.Bytes())
	case fd.Message() == nil:
		want = fmt.Sprint(value.Interface())
	case fd.Message().FullName() == "google.protobuf.Timestamp":
		seconds, nanos := parts(value.Message())
		want = time.Unix(seconds, nanos).UTC().Format(time.RFC3339Nano)
	case isDuration(fd):
		seconds, nanos := parts(value.Message())
		n, err := json.Number(fmt.Sprint(got)).Float64()
		d := time.Duration(seconds)*time.Second + time.Duration(nanos)
		if err != nil || (n != d.Seconds() && n != float64(d)) {
			t.Errorf("%s = %v, want %s (%v)", where, got, d, err)
		}
		return
	default:
		checkSame(t, where, got.(map[string]any), value.Message())
		return
	}
	if fmt.Sprint(got) != want {
		t.Errorf("%s = %v, want %s", where, got, want)
	}
}

func parts(m protoreflect.Message) (seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	return m.Get(fields.ByName("seconds")).Int(), m.Get(fields.ByName("nanos")).Int()
}
