package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/nbdload"
)

// nbdServer is a server of one device, on a Unix socket.
type nbdServer struct {
	name, socket string
	args         []string
	cmd          *exec.Cmd
}

const nbdSize = 1 << 30 // bytes of the device

// nbdServers starts ours and its peers on memory or on a file of their own each, through the page cache. end must
// be called.
func nbdServers(ctx context.Context, dir, backing string) (all []*nbdServer, end func(), err error) {
	ctx, stop := context.WithCancel(ctx)
	shm := filepath.Join("/dev/shm", "remora-bench-"+strconv.Itoa(os.Getpid()))
	end = func() {
		stop()
		for _, s := range all {
			if s.cmd != nil && s.cmd.Process != nil {
				_ = s.cmd.Wait() // told to stop
			}
		}
		_ = os.Remove(shm) // it is there for memory alone
	}
	image := func(name string) string { return filepath.Join(dir, name+".img") }
	ours, kit, qemu := []string{image("remora")}, []string{"file", image("nbdkit")}, image("qemu-nbd")
	files := []string{image("remora"), image("nbdkit"), image("qemu-nbd")}
	if backing == "memory" { // a file in memory is what qemu-nbd has for that
		ours, kit, qemu = []string{"memory:1GiB"}, []string{"memory", "1G"}, shm
		files = []string{shm}
	}
	for _, path := range files {
		if err := fullFile(path); err != nil {
			return nil, end, err
		}
	}
	for _, s := range []struct {
		name string
		args func(socket string) []string
	}{
		{"remora", func(socket string) []string {
			return append([]string{"snapctl", "dev", "serve", "--unix", socket}, ours...)
		}},
		{"nbdkit", func(socket string) []string { return append([]string{"nbdkit", "-f", "-U", socket}, kit...) }},
		{"qemu-nbd", func(socket string) []string {
			return []string{"qemu-nbd", "-t", "-e", "64", "-f", "raw", "--cache=writeback", "--aio=threads", "-k", socket, qemu}
		}},
	} {
		server := &nbdServer{name: s.name, socket: filepath.Join(dir, s.name+"-"+backing+".sock")}
		server.args = s.args(server.socket)
		all = append(all, server)
		if err := server.start(ctx); err != nil {
			return all, end, err
		}
	}
	return all, end, nil
}

// fullFile makes a file of nbdSize bytes without holes.
func fullFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i)
	}
	for range nbdSize / len(block) {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// start returns when the server's socket is there. The server ends with ctx.
func (s *nbdServer) start(ctx context.Context) (err error) {
	_ = os.Remove(s.socket) // nbdkit leaves it
	if s.cmd, err = testbed.Command(ctx, s.args[0], s.args[1:]...); err != nil {
		return err
	}
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(s.socket); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// cpu returns the processor time that a server has used.
func (s *nbdServer) cpu() (time.Duration, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(p), ") ")
	f := strings.Fields(rest)
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// nbdCell is one combination that is measured.
type nbdCell struct {
	size, depth, conns int
	write              bool
}

func (c nbdCell) String() string {
	what := "read"
	if c.write {
		what = "write"
	}
	return fmt.Sprintf("%s %d KiB, depth %d, %d conn", what, c.size>>10, c.depth, c.conns)
}

// load runs a cell and returns bytes a second and processor seconds a GiB.
func (s *nbdServer) load(c nbdCell, during time.Duration) (rate, cpu float64, err error) {
	var conns []*nbdload.Conn
	for range c.conns {
		conn, err := nbdload.Dial("unix", s.socket, false)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", s.name, err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	before, err := s.cpu()
	if err != nil {
		return 0, 0, err
	}
	var started sync.WaitGroup
	total := make([]int64, len(conns))
	errs := make([]error, len(conns))
	began := time.Now()
	for i, conn := range conns {
		started.Go(func() {
			r, err := conn.Run([]nbdload.Stream{{Size: c.size, Depth: c.depth, Write: c.write}}, during, uint64(i))
			total[i], errs[i] = r[0].Bytes, err
		})
	}
	started.Wait()
	took := time.Since(began)
	after, err := s.cpu()
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, 0, fmt.Errorf("%s: %s: %w", s.name, c, err)
	}
	var bytes int64
	for _, n := range total {
		bytes += n
	}
	return float64(bytes) / took.Seconds(), (after - before).Seconds() / (float64(bytes) / (1 << 30)), nil
}

// nbdBench measures the NBD server beside nbdkit and qemu-nbd.
func nbdBench(ctx context.Context, o options) error {
	for _, backing := range o.backings {
		if err := nbdMatrix(ctx, o, backing); err != nil {
			return err
		}
	}
	if err := nbdSlow(ctx, o); err != nil {
		return err
	}
	return nbdMixed(ctx, o)
}

func nbdMatrix(ctx context.Context, o options, backing string) (err error) {
	servers, end, err := nbdServers(ctx, o.work, backing)
	defer end()
	if err != nil {
		return err
	}
	for _, s := range servers { // memory is taken when it is written to first
		if _, _, err := s.load(nbdCell{1 << 20, 16, 1, true}, 2*time.Second); err != nil {
			return err
		}
	}
	fmt.Printf("\nNBD servers on %s, 1 GiB, random offsets, %d rounds of %v in turn, medians.\n", backing, o.rounds, o.during)
	for _, s := range servers {
		fmt.Printf("  %s\n", strings.Join(s.args, " "))
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tremora MB/s\tnbdkit\tqemu-nbd\t÷ the better\tCPU s/GiB\tnbdkit\t÷ nbdkit")
	for _, write := range []bool{false, true} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, depth := range []int{1, 16, 64} {
				for _, conns := range []int{1, 4} {
					cell := nbdCell{size, depth, conns, write}
					if !strings.Contains(cell.String(), o.only) {
						continue
					}
					rates, cpus := make([][]float64, len(servers)), make([][]float64, len(servers))
					for range o.rounds {
						for i, s := range servers {
							rate, cpu, err := s.load(cell, o.during)
							if err != nil {
								return err
							}
							rates[i], cpus[i] = append(rates[i], rate), append(cpus[i], cpu)
						}
					}
					ours, better := median(rates[0]), max(median(rates[1]), median(rates[2]))
					fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.3f\t%.3f\t%.2f\n", cell, ours/1e6, median(rates[1])/1e6, median(rates[2])/1e6,
						ours/better, median(cpus[0]), median(cpus[1]), median(cpus[0])/median(cpus[1]))
				}
			}
		}
	}
	return t.Flush()
}

// nbdSlow measures how many requests of one connection a server has under way at once: its device answers
// after 5 ms.
func nbdSlow(ctx context.Context, o options) error {
	const wait, depth = 5 * time.Millisecond, 64
	ram, err := blockdev.NewRAM(nbdSize)
	if err != nil {
		return err
	}
	defer ram.Close()
	slow := faultdev.Faulty(ram, func(context.Context, blockdev.Op, int64, int64) error {
		ts := unix.NsecToTimespec(wait.Nanoseconds()) // Go's own timers are a millisecond late on an idle machine
		for {
			if err := unix.Nanosleep(&ts, &ts); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	server, err := nbd.New([]nbd.Export{{Device: slow}}, nbd.Options{})
	if err != nil {
		return err
	}
	socket := filepath.Join(o.work, "slow.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	defer func() { stop(); <-ended }()
	c, err := nbdload.Dial("unix", socket, false)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Printf("\nA device that answers after %v, depth %d on one connection, 4 KiB: throughput ÷ %d requests each %v.\n",
		wait, depth, depth, wait)
	for _, write := range []bool{false, true} {
		var all []float64
		for range o.rounds {
			began := time.Now()
			r, err := c.Run([]nbdload.Stream{{Size: 4 << 10, Depth: depth, Write: write}}, o.during, 1)
			if err != nil {
				return err
			}
			all = append(all, float64(r[0].Requests)/time.Since(began).Seconds()/(depth/wait.Seconds()))
		}
		fmt.Printf("  %s %.3f\n", map[bool]string{false: "read", true: "write"}[write], median(all))
	}
	return nil
}

// nbdMixed measures what a stream of large reads does to small ones on the same connection.
func nbdMixed(ctx context.Context, o options) (err error) {
	servers, end, err := nbdServers(ctx, o.work, "memory")
	defer end()
	if err != nil {
		return err
	}
	fmt.Printf("\np99 of 4 KiB reads, one at a time, alone and while the same connection streams 1 MiB reads, two at a "+
		"time. Structured replies; %d rounds in turn, medians.\n", o.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\talone\tmixed\tratio\tstream MB/s")
	alone, mixed, rate := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	small, large := nbdload.Stream{Size: 4 << 10, Depth: 1, Times: true}, nbdload.Stream{Size: 1 << 20, Depth: 2}
	for _, s := range servers { // memory that was never written to is slow to read the first time
		c, err := nbdload.Dial("unix", s.socket, true)
		if err != nil {
			return err
		}
		_, err = c.Run([]nbdload.Stream{{Size: 1 << 20, Depth: 4, Write: true}}, 2*time.Second, 3)
		if err := errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	for range o.rounds {
		for _, s := range servers {
			c, err := nbdload.Dial("unix", s.socket, true)
			if err != nil {
				return err
			}
			a, err := c.Run([]nbdload.Stream{small}, o.during, 1)
			if err != nil {
				return err
			}
			m, err := c.Run([]nbdload.Stream{small, large}, o.during, 2)
			if err := errors.Join(err, c.Close()); err != nil {
				return err
			}
			alone[s.name] = append(alone[s.name], float64(a[0].Percentile(0.99)))
			mixed[s.name] = append(mixed[s.name], float64(m[0].Percentile(0.99)))
			rate[s.name] = append(rate[s.name], float64(m[1].Bytes)/o.during.Seconds())
		}
	}
	for _, s := range servers {
		a, m := median(alone[s.name]), median(mixed[s.name])
		fmt.Fprintf(t, "%s\t%v\t%v\t%.1f\t%.0f\n", s.name, time.Duration(a).Round(time.Microsecond),
			time.Duration(m).Round(time.Microsecond), m/a, median(rate[s.name])/1e6)
	}
	return t.Flush()
}
