package cmdtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// tasks runs the processes of containers beside the test, as this user and on this machine's files. Their output goes
// where the client reads it.
type tasks struct {
	tasksapi.UnimplementedTasksServer
	db *metadata.DB

	mu  sync.Mutex // guards all
	all map[string]*process
}

type process struct {
	cmd    *exec.Cmd
	stdout *os.File
	ended  chan struct{} // closed at the end, or nil before the start
	code   uint32
	at     time.Time
}

// pid returns the process's number, 0 for one that was never started.
func (p *process) pid() uint32 {
	if p.cmd.Process == nil {
		return 0
	}
	return uint32(p.cmd.Process.Pid)
}

func newTasks(ic *plugin.InitContext) (any, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	return &tasks{db: db.(*metadata.DB), all: map[string]*process{}}, nil
}

// Register adds the service to a server.
func (s *tasks) Register(server *grpc.Server) error {
	tasksapi.RegisterTasksServer(server, s)
	return nil
}

func (s *tasks) get(id string) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.all[id]
	if !ok {
		return nil, errgrpc.ToGRPC(fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound))
	}
	return p, nil
}

func (s *tasks) Create(ctx context.Context, req *tasksapi.CreateTaskRequest) (*tasksapi.CreateTaskResponse, error) {
	c, err := metadata.NewContainerStore(s.db).Get(ctx, req.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	var spec struct {
		Process struct {
			Args, Env []string
		}
	}
	if err := json.Unmarshal(c.Spec.GetValue(), &spec); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(spec.Process.Args[0], spec.Process.Args[1:]...)}
	p.cmd.Env = spec.Process.Env
	if p.stdout, err = os.OpenFile(req.Stdout, os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(req.Stderr, os.O_WRONLY, 0) // the client waits for a writer
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout = p.stdout
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[req.ContainerID] = p
	return &tasksapi.CreateTaskResponse{ContainerID: req.ContainerID, Pid: uint32(os.Getpid())}, stderr.Close()
}

func (s *tasks) Start(_ context.Context, req *tasksapi.StartRequest) (*tasksapi.StartResponse, error) {
	p, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("start: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := make(chan struct{})
	p.ended = ended
	go func() {
		_ = p.cmd.Wait() // its state says how it ended
		p.stdout.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			p.code = 128 + uint32(status.Signal())
		} else {
			p.code = uint32(p.cmd.ProcessState.ExitCode())
		}
		p.at = time.Now()
		close(ended)
	}()
	return &tasksapi.StartResponse{Pid: uint32(p.cmd.Process.Pid)}, nil
}

// wait waits for the end of a process that may not have been started yet.
func (s *tasks) wait(ctx context.Context, p *process) error {
	for {
		s.mu.Lock()
		ended := p.ended
		s.mu.Unlock()
		if ended != nil {
			select {
			case <-ended:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *tasks) Wait(ctx context.Context, req *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	p, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, p); err != nil {
		return nil, err
	}
	return &tasksapi.WaitResponse{ExitStatus: p.code, ExitedAt: timestamppb.New(p.at)}, nil
}

func (s *tasks) Get(_ context.Context, req *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	p, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	ended := p.ended
	s.mu.Unlock()
	out := &tasktypes.Process{ID: req.ContainerID, Status: tasktypes.Status_CREATED}
	if ended != nil {
		out.Status, out.Pid = tasktypes.Status_RUNNING, p.pid()
		select {
		case <-ended:
			out.Status, out.ExitStatus, out.ExitedAt = tasktypes.Status_STOPPED, p.code, timestamppb.New(p.at)
		default:
		}
	}
	return &tasksapi.GetResponse{Process: out}, nil
}

func (s *tasks) Kill(_ context.Context, req *tasksapi.KillRequest) (*emptypb.Empty, error) {
	p, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	if p.cmd.Process == nil { // it waits for its start, and ends without one
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.ended == nil {
			ended := make(chan struct{})
			close(ended)
			p.ended, p.code, p.at = ended, 128+uint32(syscall.SIGKILL), time.Now()
			p.stdout.Close()
		}
		return &emptypb.Empty{}, nil
	}
	if err := p.cmd.Process.Signal(syscall.Signal(req.Signal)); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("%w: %w", err, errdefs.ErrNotFound))
	}
	return &emptypb.Empty{}, nil
}

func (s *tasks) Delete(ctx context.Context, req *tasksapi.DeleteTaskRequest) (*tasksapi.DeleteResponse, error) {
	p, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, req.ContainerID)
	return &tasksapi.DeleteResponse{ID: req.ContainerID, ExitStatus: p.code, ExitedAt: timestamppb.New(p.at)}, nil
}

func (s *tasks) running() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range s.all {
		if p.ended == nil {
			continue
		}
		select {
		case <-p.ended:
		default:
			ids = append(ids, id)
		}
	}
	return ids
}
