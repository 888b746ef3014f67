package cache

// FailSync has syncs of image files answered by fail, until it returns nil, with the file's descriptor.
func (o *Options) FailSync(fail func(fd int) error) { o.fdatasync = fail }
