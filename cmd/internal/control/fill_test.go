package control

import (
	"fmt"
	"reflect"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A filler makes values that are not zero and differ from each other, where their types have enough values.
type filler struct {
	n   int64
	bit int // of a value's number, which is what booleans are: among all fillers no two of a message are alike
}

func (f *filler) next() int64 { f.n++; return f.n }

func (f *filler) text() string { return fmt.Sprintf("%032x", f.next()) } // may be an id

func (f *filler) truth(name string) bool {
	return name == "done" || f.next()>>f.bit&1 == 1
}

// message fills all fields of a message.
func (f *filler) message(m protoreflect.Message) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Timestamp":
		set(m, timestamppb.New(time.Unix(1_700_000_000+f.next(), f.next())).ProtoReflect())
		return
	case "google.protobuf.Duration":
		set(m, durationpb.New(time.Duration(f.next())*time.Second+500*time.Millisecond).ProtoReflect())
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOf(f.text()).MapKey(), protoreflect.ValueOf(f.text()))
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range 2 {
				if fd.Message() != nil {
					f.message(list.AppendMutable().Message())
				} else {
					list.Append(f.scalar(fd))
				}
			}
		case fd.Message() != nil:
			f.message(m.Mutable(fd).Message())
		default:
			m.Set(fd, f.scalar(fd))
		}
	}
}

// set copies a well-known type's fields, whose descriptors differ between messages that are dynamic and those that are not.
func set(to, from protoreflect.Message) {
	from.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		to.Set(to.Descriptor().Fields().ByName(fd.Name()), v)
		return true
	})
}

func (f *filler) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(f.text())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.text()))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.truth(string(fd.Name())))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(1<<30 + f.next()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1<<62 + f.next()) // more than a float64 holds
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<63 + uint64(f.next()))
	}
	panic(fmt.Sprintf("%s: no value of kind %s", fd.FullName(), fd.Kind()))
}

// request fills all fields of a struct.
func (f *filler) request(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Field(i)
		switch {
		case field.Type() == reflect.TypeFor[time.Duration]():
			field.SetInt(int64(time.Duration(f.next()) * time.Second))
		case field.Kind() == reflect.Struct:
			f.request(field)
		case field.Kind() == reflect.String:
			field.SetString(f.text())
		case field.Kind() == reflect.Bool:
			field.SetBool(f.truth(v.Type().Field(i).Name))
		case field.Kind() == reflect.Int:
			field.SetInt(1<<30 + f.next())
		case field.Kind() == reflect.Int64:
			field.SetInt(1<<62 + f.next())
		case field.Type() == reflect.TypeFor[[]byte]():
			field.SetBytes([]byte(f.text()))
		default:
			panic(fmt.Sprintf("%s: no value of type %s", v.Type().Field(i).Name, field.Type()))
		}
	}
}
