-- Accepts all of these jobs or none. ARGV: now, room, sender, number of jobs; then, of each job: id, version, record,
-- request, hints, class, late, owner, key, event, inputs, how many jobs of the owner may wait.
local WIDTH, FIRST = 12, 5
local now, room, sender, jobs = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local function field(job, at) return ARGV[FIRST + (job - 1) * WIDTH + at] end

-- Jobs there already. An answer may have been lost on its way: what bears this very version is this very submission.
local known, mine = {}, 0
for job = 1, jobs do
    local id, key = field(job, 0), field(job, 8)
    local version = redis.call('HGET', Q .. 'job:' .. id, 'v')
    if version == field(job, 1) then
        mine = mine + 1
    elseif version then
        known[#known + 1] = { int(job), 'id', id }
    elseif key ~= '' then
        local other = redis.call('HGET', Q .. 'keys', key)
        if other then known[#known + 1] = { int(job), 'key', other } end
    end
end
if #known > 0 then return { 'known', known } end
if mine == jobs and jobs > 0 then
    local before = {}
    for job = 1, jobs do before[job] = '' end
    return { 'again', before }
end

local waits = waiting()
if waits + jobs > room then return full(waits) end
local theirs = {}
for job = 1, jobs do
    local owner, quota = field(job, 7), field(job, 11)
    if owner ~= '' and quota ~= '' then
        local mine = (theirs[owner] or of_owner(owner, '0', '1')) + 1
        if mine > tonumber(quota) then
            local said = full(mine - 1)
            said[1], said[5], said[6] = 'owner', owner, quota
            return said
        end
        theirs[owner] = mine
    end
end
local before = {}
for job = 1, jobs do
    local id, class, owner, key, inputs = field(job, 0), field(job, 5), field(job, 7), field(job, 8), field(job, 10)
    local seq = int(redis.call('HINCRBY', Q .. 'meta', 'seq', 1))
    local ahead = 0
    for other = 0, tonumber(class) do ahead = ahead + redis.call('ZCARD', ready(int(other))) end
    before[job] = int(ahead)
    local fields = { 'v', field(job, 1), 'r', field(job, 2), 'q', field(job, 3), 's', '0', 'p', class, 't', '0', 'n', seq, 'a', now }
    for name, value in pairs({ h = field(job, 4), o = owner, k = key, i = inputs }) do
        if value ~= '' then
            fields[#fields + 1] = name
            fields[#fields + 1] = value
        end
    end
    redis.call('HSET', Q .. 'job:' .. id, unpack(fields))
    enter(id, '0', class, seq, { turn = '0', submitted = now, not_before = '', late = field(job, 6) })
    list('ZADD', id, '0', owner ~= '' and owner, seq)
    tally('0', class, 1)
    if key ~= '' then redis.call('HSET', Q .. 'keys', key, id) end
    for input in string.gmatch(inputs, '%S+') do redis.call('HINCRBY', Q .. 'inputs', input, 1) end
    log(id, field(job, 9), now)
    count(now, 'submitted', '0', '0')
    charge(owner, 'submitted', 1)
end
if jobs > 0 then tell(sender, 'queue') end
return { 'ok', before }
